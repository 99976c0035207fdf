"""Allocation by one threshold on the error of every unit, for the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, fill, least_cost, total_cost
from lowrank_vit.stages.allocate.uniform import Uniform

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

    revision: ClassVar[int] = 1

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
