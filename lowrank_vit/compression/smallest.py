"""The smallest model that loses no more than asked for, by bisection over one analysis."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import largest_reduction
from lowrank_vit.records.budgets import Budgets, Size, budgets_of, reduction_to
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.images import Batches
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.evaluate.comparison import compare

STEPS = 6  # of the bisection: it ends within 1/64 of the reductions that can be reached


@dataclass(frozen=True)
class Trial:
    """Hold one size that was tried: its reduction, the points that it loses, and what was measured."""

    reduction: float
    lost: float
    measured: dict[str, Any]


def points_lost(measured: dict[str, Any]) -> float:
    """Return the points lost in top-1, or in agreement with the dense model where there are no labels.

    Of a model without a classifier: the error of its features, in percent of their variance.
    """
    if "feature_error" in measured:
        return float(100 * measured["feature_error"])
    if measured["top1"] is None:
        return float(100 - measured["agreement"])
    return float(measured["top1_dense"] - measured["top1"])


def smallest(
    analysis: Analysis, max_loss: float, batches: Batches, *, within: Size | None = None, steps: int = STEPS
) -> tuple[nn.Module, Report, list[Trial]]:
    """Find the smallest model that loses at most ``max_loss`` points on the images; return its report, and all trials.

    ``batches``: unseen images, maybe with labels, which choose the size and so cannot evaluate it. Each step compresses
    and compares. ``within``: a budget that the model keeps within, too.
    Raises ``InputError`` where no size that was tried loses so little.
    """
    if not 0 <= max_loss <= 100:
        raise InputError(f"a loss of at most {max_loss:g} points cannot be asked for: give a number from 0 to 100")
    kept, trials = None, list[Trial]()
    low, high = 0.0, largest_reduction(analysis.curves, analysis.dense, analysis.model)
    sizes = [] if within is None else [within]  # what the budget alone makes is the largest model that may be kept
    for step in range(steps + len(sizes)):
        middle = (low + high) / 2
        small, report = analysis.compress(sizes[0] if step < len(sizes) else _also(within, middle))
        measured = compare(analysis.model, small, batches, progress=analysis.services.progress)
        trials.append(Trial(report["params"]["reduction"], points_lost(measured), measured))
        held = trials[-1].lost <= max_loss
        if step < len(sizes):
            if not held:
                break
            kept, low = (small, report), trials[-1].reduction
        elif held:
            kept, low = (small, report), middle
        else:
            high = middle
    if kept is None:
        last = trials[-1]
        raise InputError(
            f"even a reduction of {last.reduction:.3f} loses {last.lost:.2f} points on {last.measured['n']} images: raise "
            f"{'the budget or ' if sizes else ''}`max_loss=`, or calibrate on more images"
        )
    return *kept, trials


def _also(within: Size | None, reduction: float) -> Size:
    """Return a budget with a reduction of the parameters beside it, or the smaller of two such reductions."""
    parts = () if within is None else budgets_of(within).parts
    return Budgets((*(part for part in parts if part.cost != PARAMETERS), reduction_to(reduction)))
