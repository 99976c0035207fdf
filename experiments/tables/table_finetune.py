"""Table F, beyond the paper: what the open choices of the paper's partial fine-tune do to accuracy.

Source    of this project (docs/open-questions.md)
Command   python -m experiments run table_finetune

Every row is the recipe ``paper`` with Z in closed form and the partial fine-tune, with one choice made otherwise.
"""

from experiments.tables.architectures import DEIT_B, SWIN_B, Architecture
from experiments.tables.rows import Row, Table

CHOICES: dict[str, str] = {  # measure: what is done otherwise
    "finetune": "As settled",
    "finetune_weight_decay": "Weight decay 0.05 for 0",
    "finetune_hard_labels": "No label smoothing for 0.1",
    "finetune_batch_16": "16 images a batch for 64",
    "finetune_batch_256": "256 images a batch for 64",
}
PERCENT, EPOCHS = 50, 20


def rows(model: Architecture) -> list[Row]:
    """List the choices on a model."""
    return [
        Row.measuring(
            model,
            f"{measure.replace('_', '-')}-{PERCENT}",
            method,
            measure,
            recipe="paper",
            reduction=PERCENT / 100,
            changes={"solver": "closed_form"},
            epochs=EPOCHS,
            protocol="partial-ft",
        )
        for measure, method in CHOICES.items()
    ]


TABLE = Table(
    name="table_finetune",
    title="Table F: open choices of the partial fine-tune",
    about=__doc__ or "",
    rows=tuple(row for model in (DEIT_B, SWIN_B) for row in rows(model)),
    columns=("architecture", "method", "reduction", "top1_tuned", "seconds", "status"),
    pictures=(),
)
