"""Table F, beyond the paper: what the open choices of the paper's partial fine-tune do to accuracy.

Source    of this project (docs/open-questions.md)
Command   python -m experiments run table_finetune

Every row is the recipe ``paper`` with Z in closed form and the partial fine-tune, with one choice made otherwise.
"""

from typing import Any

from experiments.tables.architectures import DEIT_B, SWIN_B
from experiments.tables.rows import Row, Table

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {  # row: what is done otherwise, and fields of the row
    "settled": ("As settled", {}),
    "weight-decay": ("Weight decay 0.05 for 0", {"finetune_changes": {"weight_decay": 0.05}}),
    "hard-labels": ("No label smoothing for 0.1", {"finetune_changes": {"label_smoothing": 0.0}}),
    "batch-16": ("16 images a batch for 64", {"batch_size": 16}),
    "batch-256": ("256 images a batch for 64", {"batch_size": 256}),
}

TABLE = Table(
    title="Table F: open choices of the partial fine-tune",
    rows=tuple(
        Row.of(model, f"{name}-50", method, "paper", reduction=0.5, changes={"solver": "closed_form"}, **fields)
        for model in (DEIT_B, SWIN_B)
        for name, (method, fields) in CHOICES.items()
    ),
    columns=("architecture", "method", "reduction", "top1_dense", "top1_before_finetune", "top1", "seconds", "status"),
    pictures=(),
)
