"""An analysis that needs no images: what they told is interpolated between the sizes at which they were seen.

A refit's change belongs to the inputs that the output layer has at its size: some directions of the values, or some hidden
units. It is kept as a change of all of them, zero for those that are left out, and as what it adds to the output in the mean.
Changes in this form can be added up. At another size, what a direction that is now left out would add is made of the others
by least squares, exactly as the layer's own weight is; so at the size that it was fitted at, a change is what it was.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import largest_reduction, out_of_reach, priced
from lowrank_vit.compression.prices import price_of
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.linalg.elimination import refit
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.budgets import Budget, Size, budget_of, reduction_to
from lowrank_vit.records.costs import COSTS, PARAMETERS
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.moments import as_float64
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.allocate import total_cost
from lowrank_vit.stages.correct.measured_losses import LEAST
from lowrank_vit.stages.correct.regression import add_affine
from lowrank_vit.units.base import Ranks, Unit
from lowrank_vit.units.modules import ModuleCut

Change = tuple[Tensor, Tensor]  # weight and bias, as the sums below have them
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the parameters removed


def widened(decomposed: Unit, ranks: Ranks, change: Change) -> Change:
    """Express a change of the output layer at a size, (s, d) and (d,), in all k directions: (k, d) and (d,).

    The latter is what both add to the output in the mean.
    """
    subset, (weight, bias) = _subset(decomposed), map(as_float64, change)
    kept, mean = _inputs(decomposed, ranks)
    whole = torch.zeros_like(subset.weight)
    if kept is None:
        whole = weight if subset.basis is None else torch.linalg.solve(torch.block_diag(*subset.basis), weight)
    else:
        whole[kept] = weight
    return whole, bias + mean @ weight


def narrowed(decomposed: Unit, ranks: Ranks, change: Change) -> Change:
    """Express a change in all directions as one of the output layer at a size: the inverse of ``widened``."""
    subset, (whole, added) = _subset(decomposed), change
    kept, mean = _inputs(decomposed, ranks)
    if kept is not None:
        weight = refit(subset.covariance, whole, kept)
    else:
        weight = whole if subset.basis is None else torch.block_diag(*subset.basis) @ whole
    return weight, added - mean @ weight


def _inputs(decomposed: Unit, ranks: Ranks) -> tuple[Tensor | None, Tensor]:
    """Return the directions that the output layer sees at a size, and their mean, (s,); None in a dense module."""
    subset, units = _subset(decomposed), list(decomposed.parts)
    if all(ranks[unit] is None for unit in units):
        return None, subset.mean
    kept = subset.units.kept(ranks[units[-1]])
    if subset.basis is None:
        return kept, subset.mean[kept]
    cut = decomposed.cut(ranks)
    assert isinstance(cut, ModuleCut)
    return kept, (subset.mean - cut.kept.offset) @ cut.kept.columns


def _subset(decomposed: Unit) -> InputSubset:
    """Return the part that makes the output: the last one."""
    subset = list(decomposed.parts.values())[-1]
    assert isinstance(subset, InputSubset)
    return subset


def check_change(decomposed: Unit, ranks: Ranks, change: Change) -> None:
    """Raise ``ValueError`` for a change that is not of the output layer at a size."""
    subset, units = _subset(decomposed), list(decomposed.parts)
    dense = all(ranks[unit] is None for unit in units)
    count = len(subset.weight) if dense or ranks[units[-1]] is None else ranks[units[-1]]
    if (change[0].shape, change[1].shape) != ((count, subset.weight.shape[1]), (subset.weight.shape[1],)):
        raise ValueError(f"the change of {decomposed.name} is {tuple(change[0].shape)}, not of {count} directions")


@dataclass(frozen=True)
class KnownSize:
    """Hold a size at which images were seen.

    ``points``: the measured loss of every unit, and the count that it was measured at. ``changes``: what the refit added
    to the weight, (s, d), and the bias, (d,), of each output layer, float32.
    """

    ranks: Mapping[str, int | None]
    points: Mapping[str, tuple[int, float]]
    changes: Mapping[str, Change]


def needs_sizes(analysis: Analysis) -> bool:
    """Tell whether the recipe looks at images once a size is chosen."""
    return analysis.recipe.measured is not None or analysis.recipe.refit is not None


def known_sizes(analysis: Analysis, made_for: BudgetEntry | None = None) -> list[KnownSize]:
    """See the images at every reachable size of the grid, and at that of a model made before; largest first.

    ``made_for``: the budget in that model's report.
    """
    most = largest_reduction(analysis.curves, analysis.dense, analysis.model)
    budgets = [reduction_to(share) for share in GRID if share <= most]
    if made_for is not None and made_for["cost"] in COSTS.names():
        # half a unit more than the limit: a share of the dense model's cost gives the same whole number
        budgets.append(Budget(made_for["cost"], (made_for["limit"] + 0.5) / made_for["dense"]))
    quiet = replace(analysis.services, progress=False)
    alone = replace(analysis, unseen=None, services=quiet)  # no divergence on unseen images
    sizes = [_known_size(alone, budget) for budget in track(budgets, "sizes", shown=analysis.services.progress)]
    by_cost = {total_cost(analysis.curves, size.ranks): size for size in sizes}
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


def with_sizes(analysis: Analysis, made_for: BudgetEntry | None = None) -> Analysis:
    """Run the images through a grid of sizes, where the recipe needs that; of several processes, all must call this.

    ``made_for``: the budget of a model that was made before, whose size is to be in the grid.
    """
    if isinstance(analysis, Opened) or not needs_sizes(analysis):
        return analysis
    own = {field.name: getattr(analysis, field.name) for field in fields(analysis)}
    return Opened(**own, sizes=known_sizes(analysis, made_for))


@dataclass(frozen=True, kw_only=True)
class Opened(Analysis):
    """Hold the analysis of a nested folder; ``sizes``: those at which images were seen, the largest model first."""

    sizes: Sequence[KnownSize]

    def check(self) -> None:
        """Raise ``LookupError`` or ``ValueError`` where the sizes are not of these units, or there are none."""
        curves = {curve.name: curve for curve in self.curves}
        spent = [sum(curve.cost(size.ranks[name]) for name, curve in curves.items()) for size in self.sizes]
        if not spent or spent != sorted(set(spent), reverse=True):
            raise ValueError("its sizes are not in order")
        for size in self.sizes:
            counts = [(name, size.ranks[name]) for name in curves]
            if self.recipe.measured is not None:
                counts += [(name, size.points[name][0]) for name in curves]
            for name, count in counts:
                if count is not None and not 0 < count < len(curves[name].errors):
                    raise ValueError(f"{name} has no size {count}")
            for decomposed in self.decomposed:
                if decomposed.name in size.changes:
                    check_change(decomposed, size.ranks, size.changes[decomposed.name])

    def plan(self, size: Size, cost: str = PARAMETERS) -> RankPlan:
        """Choose every unit's size. Raises ``InputError`` for a budget below the smallest known size, too."""
        budget = budget_of(size, cost)
        price = price_of(budget.cost, self.dense, self.setting, self.model)
        curves = priced(self.recipe, price, self.curves, self.decomposed)
        least = price.rest(curves) + total_cost(curves, self.sizes[-1].ranks)
        if not least <= budget.limit(price.dense) < price.dense:
            raise out_of_reach(budget, self.recipe, least, price.dense)
        return super().plan(budget)

    def measure(
        self, plan: RankPlan, batches: Iterable[Tensor], images: int, store: ResumeStore | None = None
    ) -> dict[str, tuple[int, float]]:
        """Return the loss of every unit at its planned size: how far it is from the predicted one is interpolated.

        The logarithm of measured / predicted is linear between the counts that were measured, constant beyond them.
        """
        points = {}
        for decomposed in self.decomposed:
            for curve in self.curves_by_unit[decomposed.name]:
                planned = plan.ranks[curve.name]
                count = decomposed.probe_rank(curve.name) if planned is None else planned
                measured = dict(sorted(size.points[curve.name] for size in self.sizes))
                ratios = [math.log(max(loss, LEAST) / max(curve.error(at), LEAST)) for at, loss in measured.items()]
                factor = math.exp(float(np.interp(count, list(measured), ratios)))
                points[curve.name] = count, factor * max(curve.error(count), LEAST)
        return points

    def correct(self, compressed: nn.Module, ranks: Mapping[str, int | None]) -> dict[str, Any]:
        """Add to each output layer the change that lies between those of the next larger and the next smaller size."""
        if self.recipe.refit is None:
            return {}
        shares = self._shares(ranks)
        for decomposed in self.decomposed:
            sums = [torch.zeros((), dtype=torch.float64)] * 2
            for size, share in shares:
                change = size.changes.get(decomposed.name)
                if change is not None:
                    wide = widened(decomposed, size.ranks, change)
                    sums = [total.to(part) + share * part for total, part in zip(sums, wide, strict=True)]
            if sums[0].ndim:
                layer = get_linear(compressed, decomposed.linears[-1])
                add_affine(layer, *narrowed(decomposed, ranks, (sums[0], sums[1])))
        return {"refit": {"between": [self.reduction(size) for size, _ in shares]}}

    def _shares(self, ranks: Mapping[str, int | None]) -> list[tuple[KnownSize, float]]:
        """Return the known sizes around a plan, by parameters, with their shares; the dense model is one of them."""
        curves = self.curves
        wanted, dense = total_cost(curves, ranks), KnownSize({curve.name: None for curve in curves}, {}, {})
        for larger, smaller in pairwise([dense, *self.sizes]):
            most, least = (total_cost(curves, size.ranks) for size in (larger, smaller))
            if wanted >= least:
                share = min(1.0, (most - wanted) / (most - least))
                return [(size, part) for size, part in ((larger, 1 - share), (smaller, share)) if part]
        return [(self.sizes[-1], 1.0)]

    def reduction(self, size: KnownSize) -> float:
        """Return the share of all parameters that is removed at a known size."""
        saved = sum(curve.dense_cost for curve in self.curves) - total_cost(self.curves, size.ranks)
        return round(1 - (parameter_count(self.model) - saved) / self.dense_cost.parameters, 4)
