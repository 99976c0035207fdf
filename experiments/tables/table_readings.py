"""Table O, beyond the paper: what each reading of the paper's open points does to accuracy.

Source    of this project (docs/open-questions.md)
Command   python -m experiments run table_readings
          python -m experiments run table_readings/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS

Every row is the recipe ``paper`` with Z in closed form and nothing fine-tuned, with one reading changed; ``printed`` has all
that ``paper_literal`` has, but for the solver of Z.
"""

from typing import Any

from experiments.tables.architectures import DEIT_B, DEIT_T, SWIN_B, Architecture
from experiments.tables.rows import Row, Table

PRINTED = {"decomposition.unseen": False, "allocator.start": "dense", "allocator.until": "schedule"}
READINGS: dict[str, tuple[str, dict[str, Any]]] = {  # row: what is read otherwise, changes
    "settled": ("As settled", {}),
    "literal-losses": ("Losses without what X_rep cannot see", {"decomposition.unseen": False}),
    "dense-start": ("Algorithm 1 from the dense size", {"allocator.start": "dense"}),
    "literal": ("Both of these", {"decomposition.unseen": False, "allocator.start": "dense"}),
    "schedule": ("Algorithm 1 to the end of its schedule", {"allocator.until": "schedule"}),
    "printed": ("All that is printed (paper_literal)", PRINTED),
    "all-tokens": ("X_rep: all tokens of all images", {"decomposition": "whitened_normalised"}),
    "gamma-40": ("Gamma 40 for 80", {"allocator.gamma": 40.0}),
    "gamma-160": ("Gamma 160 for 80", {"allocator.gamma": 160.0}),
    "knapsack": ("Least sum of losses, by a knapsack", {"allocator": "knapsack"}),
    "uniform": ("The same share of every layer", {"allocator": "uniform"}),
    "diagonal": ("Z diagonal", {"compensation": "diagonal"}),
    "structured": ("Z structured sparse", {"compensation": "structured_sparse"}),
    "unstructured": ("Z unstructured sparse", {"compensation": "unstructured_sparse"}),
}
WINDOWS = {"windows": ("X_rep over windows, too", {"decomposition.over": "windows"})}
REDUCTIONS = ((DEIT_B, 50), (SWIN_B, 50), (DEIT_T, 40))


def rows(model: Architecture, percent: int) -> list[Row]:
    """List the readings on a model."""
    readings = READINGS | (WINDOWS if model is SWIN_B else {})
    reduction, settled = percent / 100, {"solver": "closed_form"}
    return [
        Row.untrained(model, f"{name}-{percent}", method, "paper", changes=settled | changes, reduction=reduction)
        for name, (method, changes) in readings.items()
    ]


TABLE = Table(
    title="Table O: readings of what the paper leaves open",
    rows=tuple(row for model, percent in REDUCTIONS for row in rows(model, percent)),
    columns=(
        "architecture", "method", "reduction", "params", "top1_dense", "accuracy", "relative_error_held_out", "seconds",
        "status",
    ),
    pictures=(),
)  # fmt: skip
