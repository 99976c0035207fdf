"""An analysis that needs no images: what they told is interpolated between the sizes at which they were seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import out_of_reach, priced
from lowrank_vit.compression.nested.opened import (
    KnownSize,
    check_change,
    dense_size,
    known_sizes,
    narrowed,
    needs_sizes,
    parameters_of,
    widened,
)
from lowrank_vit.compression.prices import price_of
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.budgets import Size, budget_of
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.moments import as_float64
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.stages.allocate import total_cost
from lowrank_vit.stages.correct.measured_losses import LEAST


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
                if decomposed.unit.name in size.changes:
                    check_change(decomposed, size.ranks, size.changes[decomposed.unit.name])

    def plan(self, size: Size, cost: str = PARAMETERS) -> RankPlan:
        """Choose every unit's size. Raises ``InputError`` for a budget below the smallest known size, too."""
        budget = budget_of(size, cost)
        price = price_of(budget.cost, self.dense, self.setting, self.model)
        curves = priced(self.recipe, price, self.curves, self.decomposed)
        least = price.rest(curves) + total_cost(curves, self.sizes[-1].ranks)
        if not least <= budget.limit(price.dense) < price.dense:
            raise out_of_reach(budget, self.recipe, least, price.dense)
        return super().plan(budget)

    def measure(self, plan: RankPlan, batches: Iterable[Tensor], images: int) -> dict[str, tuple[int, float]]:
        """Return the loss of every unit at its planned size: how far it is from the predicted one is interpolated.

        The logarithm of measured / predicted is linear between the counts that were measured, constant beyond them.
        """
        points = {}
        for decomposed in self.decomposed:
            for curve in self.curves_by_unit[decomposed.unit.name]:
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
                change = size.changes.get(decomposed.unit.name)
                if change is not None:
                    wide = widened(decomposed, size.ranks, change)
                    sums = [total.to(part) + share * part for total, part in zip(sums, wide, strict=True)]
            if sums[0].ndim:
                layer = get_linear(compressed, decomposed.unit.linears[-1])
                weight, bias = narrowed(decomposed, ranks, (sums[0], sums[1]))
                layer.weight.data = (as_float64(layer.weight) + weight.T).to(layer.weight)
                layer.bias.data = (as_float64(layer.bias) + bias).to(layer.bias)
        return {"refit": {"between": [self.reduction(size) for size, _ in shares]}}

    def _shares(self, ranks: Mapping[str, int | None]) -> list[tuple[KnownSize, float]]:
        """Return the known sizes around a plan, by parameters, with their shares; the dense model is one of them."""
        curves = self.curves
        wanted = total_cost(curves, ranks)
        for larger, smaller in pairwise([dense_size(curves), *self.sizes]):
            most, least = (parameters_of(curves, size) for size in (larger, smaller))
            if wanted >= least:
                share = min(1.0, (most - wanted) / (most - least))
                return [(size, part) for size, part in ((larger, 1 - share), (smaller, share)) if part]
        return [(self.sizes[-1], 1.0)]

    def reduction(self, size: KnownSize) -> float:
        """Return the share of all parameters that is removed at a known size."""
        curves = self.curves
        saved = sum(curve.dense_cost for curve in curves) - parameters_of(curves, size)
        return round(1 - (parameter_count(self.model) - saved) / self.dense_cost.parameters, 4)
