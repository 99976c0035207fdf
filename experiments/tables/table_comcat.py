"""Table C: COMCAT's ranks by differentiable search, beside the same parts with other ranks, and our methods.

Source    Xiao et al., ICML 2023, arXiv 2305.17235v2, Table 2; docs/methods/comcat.md
Command   python -m experiments run table_comcat        (or: make reproduce-table_comcat)
          python -m experiments run table_comcat/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS --seeds 0,1

Products of heads and the MLPs' two matrices by plain SVD: "manual" is the same share of all, "automatic" the search, on
calibration images and without labels. Then the paper's own objective (labels, one-sided price) and candidates, and no
biases, as in its code. The search spends the budget of `heads`, too. Last the method with its training: full fine-tuning by
labels and the dense model's answers, blocks aligned; the paper has 30 rounds of search and 300 epochs.
"""

from typing import Any

from experiments.tables.architectures import DEIT_B, DEIT_S, DEIT_T, Architecture
from experiments.tables.rows import Reported, Row, Table

MANUAL = {"search": False, "allocator": "uniform"}
WRITTEN = {"search.objective": "written", "search.target": "labels"}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {  # row: method, recipe, changes
    "manual": ("COMCAT's start, manual ranks", "comcat_search", MANUAL),
    "energy": ("COMCAT's start, ranks by energy", "comcat_search", {"search": False}),
    "automatic": ("COMCAT, automatic ranks (comcat_search)", "comcat_search", {}),
    "loss_aware": ("Ours (loss_aware)", "loss_aware", {}),
    "best": ("Ours (heads)", "heads", {}),
    "best-gates": ("Ours (heads), sizes by the search", "heads", {"search": "gates"}),
}
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {  # row: what is done otherwise in the search, at one half
    "written": ("objective as written", WRITTEN),
    "official": ("the code's candidates", {"search.candidates": "official"}),
    "unbiased": ("no biases, as in the code", {"attention.biases": False}),
}
REDUCTIONS = (40, 44, 50, 61)
TUNED = {"hard_teacher": True, "align_weight": 0.5}
PAPER = "Xiao et al. 2023, Table 2"
PRINTED: dict[str, tuple[tuple[str, str, float, str], ...]] = {  # method, parameters, top-1, note
    DEIT_S.id: (
        ("COMCAT", "-40.11%", 79.92, "of 79.8 dense"),
        ("COMCAT", "-43.82%", 79.58, "of 79.8 dense"),
        ("COMCAT", "-49.98%", 79.27, "of 79.8 dense"),
        ("UPop", "-39%", 79.6, ""),
        ("UVC", "not printed", 78.82, "49.59 % of FLOPs"),
        ("S2ViTE", "-33.94%", 79.22, ""),
    ),
    DEIT_B.id: (
        ("COMCAT", "-61.06%", 82.26, "of 81.8 dense; the repository names its released model 82.28"),
        ("CT-GFM", "-40%", 81.28, "which Yu and Wu call AAFM"),
        ("VTP", "-44.44%", 80.7, ""),
        ("S2ViTE", "-34.41%", 82.22, ""),
    ),
    DEIT_T.id: (),
}


def rows(model: Architecture) -> list[Row | Reported]:
    """List the dense model, all methods at all sizes, the search's choices, what is trained, and what is printed."""
    dense = Row.untrained(model, "dense", "Dense", None, protocol="dense")
    free = [_row(model, name, percent, *each) for percent in REDUCTIONS for name, each in METHODS.items()]
    choices = [
        _row(model, name, 50, f"COMCAT (comcat_search), {words}", "comcat_search", changes)
        for name, (words, changes) in CHOICES.items()
    ]
    printed = [
        Reported(f"{model.id}/printed-{place}", model.label, name, params, top1, PAPER, "full-ft+kd", note)
        for place, (name, params, top1, note) in enumerate(PRINTED[model.id])
    ]
    trained = Row.of(
        model, "comcat-50", "COMCAT (comcat), full FT", "comcat", reduction=0.5, protocol="full-ft+kd", full=True,
        finetune_changes=TUNED, note="one round of search, then one training", embedded_seeds=(0,),
    )  # fmt: skip
    return [dense, *free, *choices, trained, *printed]


def _row(model: Architecture, name: str, percent: int, method: str, recipe: str, changes: dict[str, Any]) -> Row:
    """Return the row of a method without training."""
    return Row.untrained(model, f"{name}-{percent}", method, recipe, reduction=percent / 100, changes=changes)


TABLE = Table(
    title="Table C: ranks by differentiable search",
    rows=tuple(row for model in (DEIT_S, DEIT_B, DEIT_T) for row in rows(model)),
    columns=(
        "architecture", "method", "protocol", "reduction", "params_printed", "params", "macs", "top1_reported", "top1_dense",
        "accuracy", "seconds", "status",
    ),
)  # fmt: skip
