"""Allocators: uniform shares, the largest gain first, one threshold on errors, and the exact one, a knapsack."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, cheapest, fill, least_cost, total_cost

Point = tuple[int, float, "int | None"]  # cost, error, rank
STEPS = 50  # of the bisection of the common factor


def _at_share(curves: Sequence[ErrorCurve], share: float) -> dict[str, int | None]:
    """Return the largest rank of each layer that costs at most ``share`` of the dense cost; a share of 1 is dense."""
    ranks: dict[str, int | None] = {}
    for curve in curves:
        affordable = [rank for rank in curve.ranks if curve.cost(rank) <= share * curve.dense_cost]
        ranks[curve.name] = None if share >= 1 else affordable[-1] if affordable else cheapest(curve)
    return ranks


@ALLOCATORS.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Keep the same share of all layers, the largest that fits; what rounding leaves over is filled in rank by rank."""

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank for every curve. The caller guarantees that the budget is at least ``least_cost``."""
        assert budget >= least_cost(curves)
        if total_cost(curves, _at_share(curves, 1.0)) <= budget:
            return RankPlan(_at_share(curves, 1.0))
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            fits = total_cost(curves, _at_share(curves, middle)) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return RankPlan(fill(curves, _at_share(curves, low), budget))


def gain(before: Point, after: Point) -> float:
    """Return the loss avoided per parameter spent on the step."""
    return (before[1] - after[1]) / (after[0] - before[0])


def lower_hull(curve: ErrorCurve) -> list[Point]:
    """Return the choices on the lower convex hull of error over cost, cheapest first: each step gains less than the last."""
    choices: list[Point] = [(curve.cost(rank), curve.error(rank), rank) for rank in curve.ranks]
    hull: list[Point] = []
    for point in [*choices, (curve.dense_cost, 0.0, None)]:
        if hull and point[1] >= hull[-1][1]:
            continue
        if hull and point[0] == hull[-1][0]:  # more for the same, as a table of times may have it
            hull.pop()
        while len(hull) >= 2 and gain(hull[-2], hull[-1]) <= gain(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


@ALLOCATORS.register("greedy")
@dataclass(frozen=True)
class GreedyMarginal:
    """Step along all layers' lower hulls in the order of gain per parameter, until the budget is spent.

    Optimal for the relaxed problem; short of the exact optimum by less than one hull step.
    """

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        ranks: dict[str, int | None] = {curve.name: cheapest(curve) for curve in curves}
        steps = []
        for index, curve in enumerate(curves):
            hull = lower_hull(curve)
            for position, (before, after) in enumerate(pairwise(hull)):
                steps.append((-gain(before, after), index, position, after[0] - before[0], after[2]))
        left, closed = budget - total_cost(curves, ranks), set()
        for _, index, _, cost, rank in sorted(steps, key=lambda step: step[:3]):
            if index in closed:
                continue
            if cost > left:
                closed.add(index)  # this layer's later steps depend on this one
                continue
            ranks[curves[index].name], left = rank, left - cost
        return RankPlan(fill(curves, ranks, budget))


def smallest_within(curve: ErrorCurve, threshold: float) -> int | None:
    """Return the smallest rank whose error is at most ``threshold``; None, dense, where no rank's is."""
    return next((rank for rank in curve.ranks if curve.error(rank) <= threshold), None)


@ALLOCATORS.register("equal_error")
@dataclass(frozen=True)
class EqualError:
    """Give every unit the smallest rank whose error is at most one threshold.

    Without a ``threshold`` it is the smallest one with which the budget is met, found by bisection over all errors, as in
    ASVD's search (Yuan et al. 2023) and in pruning by one global threshold on scores. With one, as in FLAR-SVD (Thoma et
    al., CVPRW 2025): units without such a rank stay dense, and the ranks of the others are multiplied by one common factor,
    the largest that meets the budget (bisected on the exact cost; theirs is corrected once); if the dense ones alone cost
    too much, they are cut from their largest rank on, too. What rounding leaves over is filled in rank by rank.
    ``from_uniform``: the threshold is what the whole model loses with uniform ranks, divided by the number of units.
    """

    threshold: float | None = None
    from_uniform: bool = False

    def fitted(self, curves: Sequence[ErrorCurve], budget: int, lost: Callable[[RankPlan], float]) -> "EqualError":
        """Return the allocator with its threshold, where that is to come from a model with uniform ranks.

        ``lost``: measures what the whole model loses by a plan.
        """
        if not self.from_uniform or self.threshold is not None:
            return self
        return replace(self, threshold=lost(Uniform()(curves, budget)) / max(len(curves), 1))

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank for every curve. The caller guarantees that the budget is at least ``least_cost``."""
        assert budget >= least_cost(curves)
        ranks = _by_threshold(curves, budget) if self.threshold is None else _scaled(curves, budget, self.threshold)
        return RankPlan(fill(curves, ranks, budget))


def _by_threshold(curves: Sequence[ErrorCurve], budget: int) -> dict[str, int | None]:
    """Return the ranks at the smallest threshold that meets the budget."""
    errors = sorted({curve.error(rank) for curve in curves for rank in curve.ranks})

    def ranks_at(threshold: float) -> dict[str, int | None]:
        return {curve.name: smallest_within(curve, threshold) for curve in curves}

    low, high = -1, len(errors) - 1  # at the largest error every unit is at its cheapest; below all errors it is dense
    if total_cost(curves, ranks_at(-1.0)) <= budget or not errors:
        return ranks_at(-1.0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if total_cost(curves, ranks_at(errors[middle])) <= budget else (middle, high)
    return ranks_at(errors[high])


def _scaled(curves: Sequence[ErrorCurve], budget: int, threshold: float) -> dict[str, int | None]:
    """Return the ranks within the threshold, times the largest common factor that meets the budget."""
    wanted = {curve.name: smallest_within(curve, threshold) for curve in curves}

    def times(factor: float) -> dict[str, int | None]:
        return {curve.name: _multiplied(curve, wanted[curve.name], factor) for curve in curves}

    if total_cost(curves, times(0.0)) > budget:
        largest = {curve.name: curve.ranks[-1] if curve.ranks else None for curve in curves}
        wanted = {name: largest[name] if rank is None else rank for name, rank in wanted.items()}
    low, high = 0.0, 1.0
    while total_cost(curves, times(high)) <= budget and times(high) != times(2 * high):
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if total_cost(curves, times(middle)) <= budget else (low, middle)
    return times(low)


def _multiplied(curve: ErrorCurve, rank: int | None, factor: float) -> int | None:
    """Return a rank times a factor, rounded down to an admissible one; dense stays dense."""
    if rank is None or not curve.ranks:
        return None
    steps = int((factor * rank - curve.ranks[0]) // curve.ranks.step)
    return curve.ranks[min(max(steps, 0), len(curve.ranks) - 1)]


@dataclass(frozen=True)
class _Choices:
    """Hold all choices of one layer, as arrays; the last one is dense."""

    costs: NDArray[np.int64]
    errors: NDArray[np.float64]
    ranks: list[int | None]

    @classmethod
    def of(cls, curve: ErrorCurve) -> "_Choices":
        ranks: list[int | None] = [*curve.ranks, None]
        costs = np.array([curve.cost(rank) for rank in ranks], dtype=np.int64)
        return cls(costs, np.array([curve.error(rank) for rank in ranks]), ranks)

    def keep(self, which: NDArray[np.bool_]) -> "_Choices":
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
        slack = max(upper - lower, 0.0) + 1e-9 * abs(upper)
        core = []
        for layer in layers:
            penalised = layer.penalised(price)
            core.append(layer.keep(penalised - penalised.min() <= slack))
        ranks = dynamic_programme(core, budget)
        return RankPlan(dict(zip((curve.name for curve in curves), ranks, strict=True)))
