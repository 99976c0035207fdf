"""The paper, Azizi et al. 2024: activation-aware SVD on the average input, Algorithm 1, and a compensation Z."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.methods.exact import WhitenedNormalised
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.allocate import ALLOCATORS, fill, total_cost
from lowrank_vit.stages.compensate.kinds.low_rank import LowRank
from lowrank_vit.stages.decompose import DECOMPOSITIONS, tail_energy

IMAGES, WINDOWS = "images", "windows"
STARTS = ("factored", "dense")
COUNTED, SCHEDULE = "counted", "schedule"


@DECOMPOSITIONS.register("representative")
@dataclass(frozen=True)
class RepresentativeSVD:
    """Truncate the SVD of ``X_rep W``, X_rep the mean input ``over`` images, (tokens, n): the paper's (6) and (7).

    The paper's X_rep is the mean of the samples of the proxy data set, which are images: ``"images"``, all tokens of an
    image in their places. Where a layer sees windows (Swin's attention) these are stacked; their order is the same in
    every image, and no order of the rows changes U and V. ``"windows"`` takes each window for a sample, as its tensor
    has it: the mean over images and windows, w^2 tokens in all, of which more is averaged away and no more seen.
    ``U = pinv(X_rep) U* sqrt(S)``, ``V = V* sqrt(S)`` (the paper prints ``sqrt(S) V*``, which does not conform).
    Its rank is at most the number of tokens (``cap``), and whatever of W lies outside the row space of X_rep is lost.
    The loss is the fraction of the energy of ``X_rep W`` left out, which is what the paper's Algorithm 1 compares. It is
    exactly zero from the cap on, so that in layers with more directions than tokens it says nothing; with ``unseen``,
    what the mean image cannot see is added: the relative error ``E||x (W - U V^T)||^2 / E||x W||^2`` at the cap.
    """

    unseen: bool = True
    over: str = IMAGES

    needs: ClassVar[frozenset[str]] = frozenset({"representative", "input_second"})

    def __post_init__(self) -> None:
        if self.over not in (IMAGES, WINDOWS):
            raise unknown("mean", self.over, (IMAGES, WINDOWS))

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        x = moments.mean("representative")
        if self.over == WINDOWS:
            windows = round(float(moments.sums["representative_windows"])) // moments.images
            x = x.unflatten(0, (windows, -1)).mean(0)
        left, singular_values, vt = torch.linalg.svd(x @ weight, full_matrices=False)
        cap = min(len(x), *weight.shape)
        left, singular_values, v = left[:, :cap], singular_values[:cap], vt[:cap].T
        root = singular_values.sqrt()
        u = torch.linalg.pinv(x) @ left * root
        total = singular_values.square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
        factors = Factors(u, v * root, tail_energy(singular_values, total), cap=cap)
        if not self.unseen:
            return factors
        errors = output_metric(weight, moments, centred=False).error_curve(factors)
        return replace(factors, loss=factors.loss + errors[-1])


@ALLOCATORS.register("paper")
@dataclass(frozen=True)
class GradualReduction:
    """Cut, step by step, the layer that will then have lost least: Algorithm 1 with the exponential schedule (9).

    Step t removes ``tau(t - 1) - tau(t)`` parameters, ``tau(t) = N + (N_0 - N) exp(-t / gamma)``, from the layer whose
    cumulative loss after the cut is the smallest; of equal losses, from the layer with the largest share of its rank left,
    then from the first. Where the paper is open: ranks start at min(n, d), are rounded down
    and stay at least one; a layer at or above its break-even rank is counted, and stays, dense; one below it, but above
    the rank that its statistics cap, has the capped rank, since further directions do not exist.

    ``start``: what ``N_0`` is. ``"factored"``: all layers at full rank as pairs of factors, which hold more than the dense
    weights. ``"dense"``: the dense weights, though the ranks stand for more.
    ``until``: when it stops. The algorithm's own count is ``N_0`` less all that it has removed; the model is smaller, as it
    holds layers above break-even dense. ``"counted"``: once the model fits, which is long before the schedule's end (before
    300 of 500 steps, the own count still well above the target), so that more ``iterations`` change nothing.
    ``"schedule"``: once the own count is at the target, or ``iterations`` are over, which leaves ``exp(-iterations /
    gamma)`` of ``N_0 - N``: 0.2 % for 500 and 80; a step then removes what the own count has above tau(t), and nothing
    where it is below already. In either case single ranks follow while the model does not fit, and what was removed too
    much is filled in.
    """

    gamma: float = 80.0
    iterations: int = 500
    start: str = "factored"
    until: str = COUNTED

    def __post_init__(self) -> None:
        if self.start not in STARTS or not self.gamma > 0:
            raise InputError(f"start={self.start!r}, gamma={self.gamma}: start is factored or dense, gamma is positive")
        if self.until not in (COUNTED, SCHEDULE):
            raise unknown("end of the schedule", self.until, (COUNTED, SCHEDULE))

    def __call__(self, curves: Sequence[ErrorCurve], budget: int) -> RankPlan:
        """Choose a rank for every curve; the trajectory holds step, layer, rank, loss, the own count and the model's."""
        full = {curve.name: curve.full_rank or len(curve.errors) - 1 for curve in curves}
        costs = {curve.name: curve.rank_cost for curve in curves}
        ranks = dict(full)
        own = self._started(curves, full)
        excess = own - budget
        trajectory: list[dict[str, float | int | str]] = []
        step = 0
        while self._counted(curves, ranks) > budget or (
            self.until == SCHEDULE and step < self.iterations and own > budget
        ):
            step += 1
            left = excess * math.exp(-step / self.gamma)  # above the target, after this step
            now = own - budget if self.until == SCHEDULE else excess * math.exp(-(step - 1) / self.gamma)
            amount = now - left if step <= self.iterations else 0.0
            if amount <= 0 and step <= self.iterations:
                continue
            losses = {}
            for curve in curves:
                steps_down = max(1, math.ceil(amount / (curve.rank_cost * curve.multiple)))
                rank = max(self._floor(curve), ranks[curve.name] - steps_down * curve.multiple)
                if rank < ranks[curve.name]:
                    losses[curve.name] = (curve.error(rank), rank)
            if not losses:
                break
            name = min(losses, key=lambda layer: (losses[layer][0], -ranks[layer] / full[layer]))
            own -= (ranks[name] - losses[name][1]) * costs[name]
            ranks[name] = losses[name][1]
            trajectory.append(
                {
                    "step": step,
                    "layer": name,
                    "rank": ranks[name],
                    "loss": losses[name][0],
                    "own_count": own,
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


PAPER = add_recipe(
    "paper",
    units={"decomposition": RepresentativeSVD()},
    allocator=GradualReduction(),
    compensation=LowRank(),
    solver="minibatch",
    about="the paper with our settlements: SVD on the mean image, Algorithm 1, low-rank Z by minibatches (Azizi et al.)",
)
add_recipe(
    "paper_literal",
    PAPER,
    units={"decomposition": RepresentativeSVD(unseen=False)},
    allocator=GradualReduction(start="dense", until=SCHEDULE),
    optimizer="sgd",
    about="the paper as printed: no loss beyond the mean image's, the schedule from the dense size to its end, plain descent",
)
add_recipe(
    "paper_charitable",
    PAPER,
    units={"decomposition": WhitenedNormalised()},
    about="the paper read charitably: all tokens of all images in place of the mean image, Algorithm 1, low-rank Z",
)
look("paper", "^", (6, 3), "orange", "Azizi et al., our settlements", "before fine-tuning")
look("paper_literal", "^", (2, 3), "black", "Azizi et al., as printed", "before fine-tuning")
look("paper_charitable", "X", (4, 2, 1, 2), "olive")
