"""Uniform allocation: every layer keeps the same share of its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    revision: ClassVar[int] = 1

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
