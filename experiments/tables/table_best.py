"""Table B, beyond the paper: what each ingredient of ``best`` brings, from SVD-LLM's form on, without fine-tuning.

Sources   Wang et al. 2024 (SVD-LLM); Azizi et al. 2024 for the sizes; the rest is of this project (README)
Command   python -m experiments run table_best
          python -m experiments run table_best/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS

Whitened SVD with the same share of every layer; the loss's Fisher on the output side, and ranks by predicted loss over the
whole model; attention by head and MLPs by interpolation under one budget; the predicted losses corrected by measured ones;
outputs refitted to the dense model's. Then, beside each other, what is stored for nothing: identities in pairs of factors,
and norms' scales and shifts folded into linear layers; on top of the latter, patch and position embeddings at a rank, and
all together. Last, all parameters of ``heads``, and of all together, trained towards the dense model on the calibration
images alone; for DeiT-Tiny, table R has the rows of ``heads``.
"""

from typing import Any

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import Row, Table

FOLDED = {"folded": True}
PATCHES, POSITIONS = {"patches": "two_sided"}, {"positions": "kronecker"}
EPOCHS = 9  # of 1000 images, 20 a step
PROTOCOL = "calibration-distilled"
DISTILLED: dict[str, Any] = {"protocol": PROTOCOL, "distill_epochs": EPOCHS, "embedded_seeds": (0,)}
STEPS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {  # row: method, recipe, changes, fields of the row
    "svd_llm": ("Whitened, uniform (svd_llm)", "svd_llm", {}, {}),
    "loss_aware": ("Two-sided, ranks by loss (loss_aware)", "loss_aware", {}, {}),
    "halves": ("Heads and interpolation", "heads", {"refit": False, "measured": 0}, {}),
    "measured": ("+ losses measured", "heads", {"refit": False}, {}),
    "best": ("+ outputs refitted (heads)", "heads", {}, {}),
    "pivoted": ("+ factors pivoted", "heads", {"pivoted": True}, {}),
    "folded": ("+ norms folded", "heads", FOLDED, {}),
    "patches": ("+ patch embedding at a rank", "heads", FOLDED | PATCHES, {}),
    "positions": ("+ position embedding at a rank", "heads", FOLDED | PATCHES | POSITIONS, {}),
    "embeddings_pivoted": ("+ all, factors pivoted (best)", "best", {}, {}),
    "distilled": ("+ distilled (heads)", "heads", {}, DISTILLED),
    "all_distilled": ("+ all, factors pivoted, distilled", "best", {}, DISTILLED),
}
UNTRAINED = ("svd_llm", "loss_aware", "halves", "measured", "best", "pivoted", "embeddings_pivoted")
REDUCTIONS = (50, 70, 80, 90)  # the methods part at the last three; a row says where a recipe ends
MORE = (25, 40, 60)  # of `heads` alone on DeiT-B; of what is not trained on DeiT-Tiny


def rows(model: Architecture) -> list[Row]:
    """List all steps at some sizes, and the most important ones at others."""
    few = ("best",) if model is DEIT_B else UNTRAINED
    every = tuple(name for name in STEPS if model is DEIT_B or name != "distilled")
    sizes = dict.fromkeys(MORE, few) | dict.fromkeys(REDUCTIONS, every)
    return [
        Row.untrained(model, f"{name}-{percent}", method, recipe, reduction=percent / 100, changes=changes, **fields)
        for percent, names in sizes.items()
        for name, (method, recipe, changes, fields) in STEPS.items()
        if name in names
    ]


TABLE = Table(
    title="Table B: what each ingredient of best brings",
    rows=tuple(row for model in (DEIT_B, DEIT_T) for row in rows(model)),
    columns=(
        "architecture", "method", "reduction", "params", "top1_dense", "accuracy", "relative_error_held_out", "macs",
        "seconds", "status",
    ),
)  # fmt: skip
