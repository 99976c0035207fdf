"""Table C, levels: the same share removed from products of heads, from single matrices, and from MLPs.

Source    Xiao et al., ICML 2023, arXiv 2305.17235v2, Tables 1 and 4; docs/methods/comcat.md
Command   python -m experiments run table_comcat_levels
          python -m experiments run table_comcat_levels/deit_t --data imagefolder:IMAGES --checkpoints WEIGHTS

Plain SVD, the same share of all, nothing trained. "Reduction" is of the parameters of attention (heads and matrices: all
MLPs dense) or of MLPs (attention dense). Without biases, as in the paper's code: at full rank, too.
"""

from __future__ import annotations

from experiments.tables.architectures import DEIT_S, DEIT_T, Architecture
from experiments.tables.rows import Reported, Row, Table

ATTENTION, MLPS = (20, 40, 60, 80), (10, 20, 30, 40, 50)  # percent removed
FIRST, FOURTH = "Xiao et al. 2023, Table 1", "Xiao et al. 2023, Table 4"
DISTILLED = "DeiT-small distilled, 80.90 dense"
PRINTED: dict[str, tuple[str, str, tuple[int, ...], tuple[float, ...]]] = {  # id: method, source, removed, top-1
    "heads": ("Products of heads", FIRST, ATTENTION, (79.81, 76.11, 63.56, 11.5)),
    "matrices": ("Matrices of heads", FIRST, ATTENTION, (73.01, 56.15, 22.95, 0.73)),
    "svd": ("MLPs, SVD", FOURTH, MLPS, (76.75, 73.68, 69.76, 54.63, 21.31)),
    "tucker": ("MLPs, Tucker", FOURTH, MLPS, (73.69, 70.53, 63.39, 42.37, 10.37)),
    "tt": ("MLPs, tensor train", FOURTH, MLPS, (0.81, 0.53, 0.35, 0.16, 0.14)),
}


def rows(model: Architecture) -> list[Row | Reported]:
    """List the levels at all shares, and the printed numbers."""

    def row(name: str, method: str, measure: str, percent: int) -> Row:
        return Row.measuring(model, f"{name}-{percent}", method, measure, reduction=percent / 100)

    measured = [
        *(row("heads", "Products of heads", "head_level", percent) for percent in ATTENTION),
        *(row("matrices", "Matrices of heads", "matrix_level", percent) for percent in ATTENTION),
        *(row("unbiased", "Products of heads, no biases", "unbiased_head_level", percent) for percent in (0, 20)),
        *(row("mlps", "MLPs, SVD", "mlp_level", percent) for percent in MLPS),
    ]
    return [*measured, *(printed() if model is DEIT_S else [])]


def printed() -> list[Reported]:
    """List the paper's numbers."""
    return [
        Reported(
            f"{DEIT_S.id}/printed-{name}-{percent}", DEIT_S.label, method, f"-{percent}% of its layers", top1, source,
            "training-free", DISTILLED if source == FIRST else "",
        )
        for name, (method, source, removed, numbers) in PRINTED.items()
        for percent, top1 in zip(removed, numbers, strict=True)
    ]  # fmt: skip


TABLE = Table(
    name="table_comcat_levels",
    title="Table C, levels: heads, matrices, MLPs",
    about=__doc__ or "",
    rows=tuple(row for model in (DEIT_S, DEIT_T) for row in rows(model)),
    columns=("architecture", "method", "reduction", "params_printed", "top1_reported", "accuracy", "seconds", "status"),
    pictures=(),
)
