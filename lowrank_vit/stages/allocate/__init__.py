"""Allocators, one file each, beside that of the paper: they choose every layer's rank within one budget of parameters.

An allocator is a frozen dataclass, called with the layers' error curves and the budget (parameters for all of them
together); it returns a ``RankPlan`` that never exceeds the budget.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.runtime.registry import Registry


class Allocator(Protocol):
    """Define the interface of an allocator.

    One that depends on what a whole smaller model loses has ``fitted(curves, budget, lost)``, too, which returns the
    allocator to use; ``lost``: the measured loss of a plan. It is asked where the recipe measures curves.
    """

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank, or dense, for every curve."""


ALLOCATORS: Registry[type[Allocator]] = Registry("allocator", __name__, "lowrank_vit.methods")


def cheapest(curve: ErrorCurve) -> int | None:
    """Return the choice with the fewest parameters."""
    return curve.ranks[0] if curve.ranks else None


def least_cost(curves: Sequence[ErrorCurve]) -> int:
    """Return the parameters of the cheapest plan: no smaller budget can be met."""
    return sum(curve.cost(cheapest(curve)) for curve in curves)


def total_cost(curves: Sequence[ErrorCurve], ranks: Mapping[str, int | None]) -> int:
    """Return the parameters of a plan."""
    return sum(curve.cost(ranks[curve.name]) for curve in curves)


def next_rank(curve: ErrorCurve, rank: int | None) -> int | None:
    """Return the rank one step above ``rank``; ``None`` means dense, which follows the largest rank."""
    if rank is None:
        return None
    larger = rank + curve.multiple
    return larger if curve.ranks and larger <= curve.ranks[-1] else None


def fill(curves: Sequence[ErrorCurve], ranks: dict[str, int | None], budget: int) -> dict[str, int | None]:
    """Spend what is left of the budget in single steps of rank, the largest gain per parameter first.

    Afterwards no layer can take another step, so the budget is met to within one step of one layer.
    """
    ranks, left = dict(ranks), budget - total_cost(curves, ranks)
    while True:
        steps = []
        for curve in curves:
            rank = ranks[curve.name]
            larger = next_rank(curve, rank)
            cost = curve.cost(larger) - curve.cost(rank)
            if rank is not None and cost <= left:
                steps.append(((curve.error(rank) - curve.error(larger)) / max(cost, 1), cost, curve.name, larger))
        if not steps:
            return ranks
        _, cost, name, larger = max(steps, key=lambda step: (step[0], -step[1]))
        ranks[name], left = larger, left - cost
