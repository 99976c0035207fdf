"""The exact allocation: a multiple-choice knapsack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, total_cost
from lowrank_vit.stages.allocate.rules import GreedyMarginal


@dataclass(frozen=True)
class _Choices:
    """Hold all choices of one layer, as arrays; the last one is dense."""

    costs: NDArray[np.int64]
    errors: NDArray[np.float64]
    ranks: list[int | None]

    @classmethod
    def of(cls, curve: ErrorCurve) -> _Choices:
        ranks: list[int | None] = [*curve.ranks, None]
        costs = np.array([curve.cost(rank) for rank in ranks], dtype=np.int64)
        return cls(costs, np.array([curve.error(rank) for rank in ranks]), ranks)

    def keep(self, which: NDArray[np.bool_]) -> _Choices:
        return _Choices(self.costs[which], self.errors[which], [r for r, k in zip(self.ranks, which, strict=True) if k])

    def penalised(self, price: float) -> NDArray[np.float64]:
        return self.errors + price * self.costs


def best_price(layers: Sequence[_Choices], budget: int) -> float:
    """Find the Lagrange multiplier (loss per parameter) that maximises the dual of the relaxed problem."""

    def spent(price: float) -> int:
        return sum(int(layer.costs[layer.penalised(price).argmin()]) for layer in layers)

    low, high = 0.0, 1.0
    while spent(high) > budget:
        low, high = high, high * 16
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > budget else (low, middle)
    return high


def dynamic_programme(layers: Sequence[_Choices], budget: int) -> list[int | None]:
    """Find the choices of least total error within ``budget``, in O(budget / unit * number of choices).

    The unit is the greatest common divisor of all costs above each layer's cheapest one.
    """
    cheapest = [int(layer.costs.min()) for layer in layers]
    extras = [layer.costs - floor for layer, floor in zip(layers, cheapest, strict=True)]
    unit = reduce(math.gcd, (int(extra) for layer in extras for extra in layer), 0) or 1
    capacity = (budget - sum(cheapest)) // unit
    capacity = min(capacity, sum(int(extra.max()) for extra in extras) // unit)
    best = np.zeros(capacity + 1)
    taken = []
    for layer, extra in zip(layers, extras, strict=True):
        totals = np.full(capacity + 1, np.inf)
        choice = np.zeros(capacity + 1, dtype=np.int16)
        for index, (units, error) in enumerate(zip(extra // unit, layer.errors, strict=True)):
            if units <= capacity:
                candidate = best[: capacity + 1 - units] + error
                better = candidate < totals[units:]
                totals[units:][better] = candidate[better]
                choice[units:][better] = index
        best = totals
        taken.append(choice)
    ranks: list[int | None] = []
    for layer, extra, choice in zip(reversed(layers), reversed(extras), reversed(taken), strict=True):
        index = int(choice[capacity])
        ranks.append(layer.ranks[index])
        capacity -= int(extra[index]) // unit
    return ranks[::-1]


@ALLOCATORS.register("knapsack")
@dataclass(frozen=True)
class Knapsack:
    """Minimise exactly the summed error over one choice for each layer, dense among them, within the budget.

    The Lagrangian dual bounds the optimum from below, the greedy plan from above; a choice whose reduced cost exceeds
    the gap between them is in no optimal plan. A dynamic programme over the few choices that remain is exact.
    """

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        if sum(curve.dense_cost for curve in curves) <= budget:
            return RankPlan({curve.name: None for curve in curves})
        layers = [_Choices.of(curve) for curve in curves]
        greedy = dict(GreedyMarginal()(curves, budget).ranks)
        assert total_cost(curves, greedy) <= budget
        upper = sum(curve.error(greedy[curve.name]) for curve in curves)
        price = best_price(layers, budget)
        lower = sum(float(layer.penalised(price).min()) for layer in layers) - price * budget
        slack = upper - lower + 1e-9 * abs(upper)
        core = []
        for layer in layers:
            penalised = layer.penalised(price)
            core.append(layer.keep(penalised - penalised.min() <= slack))
        ranks = dynamic_programme(core, budget)
        return RankPlan(dict(zip((curve.name for curve in curves), ranks, strict=True)))
