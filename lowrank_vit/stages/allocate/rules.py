"""Allocators beside the exact one: uniform shares, the largest gain first, one threshold on errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, cheapest, fill, least_cost, total_cost


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


Point = tuple[int, float, "int | None"]  # cost, error, rank


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


STEPS = 50  # of the bisection of the common factor


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

    def fitted(self, curves: Sequence[ErrorCurve], budget: int, lost: Callable[[RankPlan], float]) -> EqualError:
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
