"""Greedy allocation by the marginal loss per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, cheapest, fill, total_cost

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

    revision: ClassVar[int] = 1

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
