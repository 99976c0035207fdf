"""The paper's Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate import ALLOCATORS, fill, total_cost

STARTS = ("factored", "dense")


@ALLOCATORS.register("paper")
@dataclass(frozen=True)
class GradualReduction:
    """Cut, step by step, the layer that will then have lost least: Algorithm 1 with the exponential schedule (9).

    Step t removes ``tau(t - 1) - tau(t)`` parameters, ``tau(t) = N + (N_0 - N) exp(-t / gamma)``, from the layer whose
    cumulative loss after the cut is the smallest. Where the paper is open: ranks start at min(n, d), are rounded down
    and stay at least one; a layer at or above its break-even rank is counted, and stays, dense; one below it, but above
    the rank that its statistics cap, has the capped rank, since further directions do not exist.

    ``start``: what ``N_0`` is. ``"factored"``: all layers at full rank as pairs of factors, which hold more than the dense
    weights; then 500 iterations of gamma 80 come within 0.2 % of the target. ``"dense"``: the dense weights, with which
    the schedule ends far short of it, as ranks above break-even save nothing. In either case the algorithm stops at the
    target, goes on by single ranks after ``iterations``, and what the last cut removed too much is filled in.
    """

    revision: ClassVar[int] = 1

    gamma: float = 80.0
    iterations: int = 500
    start: str = "factored"

    def __post_init__(self) -> None:
        if self.start not in STARTS or not self.gamma > 0:
            raise InputError(f"start={self.start!r}, gamma={self.gamma}: start is factored or dense, gamma is positive")

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank for every curve; the trajectory holds step, layer, rank, loss and counted parameters."""
        full = {curve.name: curve.full_rank or len(curve.errors) - 1 for curve in curves}
        ranks = dict(full)
        excess = self._started(curves, full) - budget
        trajectory: list[dict[str, float | int | str]] = []
        step = 0
        while self._counted(curves, ranks) > budget:
            step += 1
            amount = excess * (math.exp(-(step - 1) / self.gamma) - math.exp(-step / self.gamma))
            amount = amount if step <= self.iterations else 0.0
            losses = {}
            for curve in curves:
                steps_down = max(1, math.ceil(amount / (curve.rank_cost * curve.multiple)))
                rank = max(self._floor(curve), ranks[curve.name] - steps_down * curve.multiple)
                if rank < ranks[curve.name]:
                    losses[curve.name] = (curve.error(rank), rank)
            if not losses:
                break
            name = min(losses, key=lambda layer: (losses[layer][0], -ranks[layer] / full[layer]))
            ranks[name] = losses[name][1]
            trajectory.append(
                {
                    "step": step,
                    "layer": name,
                    "rank": ranks[name],
                    "loss": losses[name][0],
                    "parameters": self._counted(curves, ranks),
                }
            )
        plan = {curve.name: self._choice(curve, ranks[curve.name]) for curve in curves}
        return RankPlan(fill(curves, plan, budget), tuple(trajectory))

    def _started(self, curves: Sequence[ErrorCurve], full: dict[str, int]) -> int:
        """Return ``N_0``."""
        if self.start == "dense":
            return sum(curve.dense_cost for curve in curves)
        return sum(curve.cost(full[curve.name]) for curve in curves)

    @staticmethod
    def _floor(curve: ErrorCurve) -> int:
        return curve.ranks[0] if curve.ranks else len(curve.errors) - 1

    @staticmethod
    def _choice(curve: ErrorCurve, rank: int) -> int | None:
        """Return the choice for a rank: dense at or above break-even, else the nearest admissible rank below."""
        if not curve.ranks or rank > curve.break_even:
            return None
        rank = min(rank, curve.ranks[-1])
        return max(curve.ranks[0], rank - (rank - curve.ranks[0]) % curve.multiple)

    def _counted(self, curves: Sequence[ErrorCurve], ranks: dict[str, int]) -> int:
        return total_cost(curves, {curve.name: self._choice(curve, ranks[curve.name]) for curve in curves})
