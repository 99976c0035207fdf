"""What images tell of a recipe at a few sizes: measured losses, refitted outputs. All sizes between follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import largest_reduction
from lowrank_vit.compression.nested.changes import Change
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.budgets import Budget, reduction_to
from lowrank_vit.records.costs import COSTS
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.allocate import total_cost

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the parameters removed


@dataclass(frozen=True)
class KnownSize:
    """Hold a size at which images were seen.

    ``points``: the measured loss of every unit, and the count that it was measured at. ``changes``: what the refit added
    to the weight, (s, d), and the bias, (d,), of each output layer, float32.
    """

    ranks: Mapping[str, int | None]
    points: Mapping[str, tuple[int, float]]
    changes: Mapping[str, Change]


def dense_size(curves: Sequence[ErrorCurve]) -> KnownSize:
    """Return the size of the dense model, with nothing left out, measured or changed."""
    return KnownSize({curve.name: None for curve in curves}, {}, {})


def parameters_of(curves: Sequence[ErrorCurve], known: KnownSize) -> int:
    """Count the parameters of all units at a size."""
    return total_cost(curves, known.ranks)


def needs_sizes(analysis: Analysis) -> bool:
    """Tell whether the recipe looks at images once a size is chosen."""
    return analysis.recipe.measured is not None or analysis.recipe.refit is not None


def known_sizes(analysis: Analysis, made_for: BudgetEntry | None = None) -> list[KnownSize]:
    """See the images at every reachable size of the grid, and at that of a model made before; largest first.

    ``made_for``: the budget in that model's report.
    """
    if not needs_sizes(analysis):
        return []
    most = largest_reduction(analysis.curves, analysis.dense, analysis.model)
    budgets = [reduction_to(share) for share in GRID if share <= most]
    if made_for is not None and made_for["cost"] in COSTS.names():
        # half a unit more than the limit: a share of the dense model's cost gives the same whole number
        budgets.append(Budget(made_for["cost"], (made_for["limit"] + 0.5) / made_for["dense"]))
    quiet = replace(analysis.services, progress=False)
    alone = replace(analysis, unseen=None, services=quiet)  # no divergence on unseen images
    sizes = [_known_size(alone, budget) for budget in track(budgets, "sizes", shown=analysis.services.progress)]
    by_cost = {parameters_of(analysis.curves, size): size for size in sizes}
    return [by_cost[cost] for cost in sorted(by_cost, reverse=True)]


def _known_size(analysis: Analysis, budget: Budget) -> KnownSize:
    plan = analysis.plan(budget)
    points = {str(step["part"]): (int(step["kept"]), float(step["measured_loss"])) for step in plan.measured}
    small = analysis.resized(replace(plan, pivoted=False))  # the refit comes before the pivots
    before = _outputs(analysis, small)
    analysis.correct(small, plan.ranks)
    changes = {
        name: (weight - before[name][0], bias - before[name][1])
        for name, (weight, bias) in _outputs(analysis, small).items()
        if not weight.equal(before[name][0]) or not bias.equal(before[name][1])
    }
    return KnownSize(dict(plan.ranks), points, changes)


def _outputs(analysis: Analysis, small: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Copy the weight, (s, d), and the bias, (d,), of every unit's output layer."""
    layers = {unit.name: get_linear(small, unit.linears[-1]) for unit in analysis.units if not unit.ahead}
    return {name: (layer.weight.detach().T.clone(), layer.bias.detach().clone()) for name, layer in layers.items()}
