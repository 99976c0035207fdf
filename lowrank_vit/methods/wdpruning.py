"""WDPruning: width by scores and thresholds of heads, hidden units and outputs; depth by the last blocks (Yu et al. 2022)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Directions, PartsInOrder
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HEAD, HIDDEN, OUTPUT, AttentionSite, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.correct.output_refit import ClassifierRefit
from lowrank_vit.stages.decompose import DEPTHS, GATED, learnt_scores
from lowrank_vit.stages.gates import GRADUAL, GradualMethod, Progress
from lowrank_vit.stages.gates.expected import dense_cost, pruned
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, Place

OPEN = 10.0  # the threshold at the start, whose sigmoid keeps all of up to 22000 parts


@DEPTHS.register("last")
@dataclass(frozen=True)
class LastBlocks:
    """Leave out the last blocks, as WDPruning does after the classifier at which it stops (Yu et al. 2022).

    What is lost is told as the share of blocks that are left out.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, count: int) -> Directions:
        return Directions(torch.arange(count), torch.linspace(1, 0, count + 1, dtype=torch.float64))


@GATED.register("learnt")
@dataclass(frozen=True)
class LearntParts:
    """Score heads or hidden units, and outputs, by their gates; kept outputs' biases take up the mean of removed inputs."""

    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, site: AttentionSite | MlpSite, moments: Moments) -> PartsInOrder:
        width = site.head_width if isinstance(site, AttentionSite) else 1
        found = PartsInOrder.by_score(
            learnt_scores(moments)[::width], learnt_scores(moments, "learnt_outputs"), moments.mean("input_sum")
        )
        found.units.loss[0] = found.units.loss[1]  # rank 0 cannot be chosen: its loss is recorded as that of rank 1
        return found


def kept_by(threshold: Tensor, count: int) -> int:
    """Return how many of ``count`` parts a threshold keeps: ``ceil(sigmoid(threshold) count)``, at least one."""
    return max(1, math.ceil(torch.sigmoid(threshold.detach().double()).item() * count))


class TopK(torch.autograd.Function):
    """Make the mask of the best parts, (count,), by their scores, (count,), and a threshold, ().

    Its gradient goes straight through to the scores; that of the threshold is the sum over the kept parts.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor) -> Tensor:
        kept = scores.argsort(descending=True, stable=True)[: kept_by(threshold, len(scores))]
        mask = torch.zeros_like(scores).index_fill(0, kept, 1.0)
        ctx.save_for_backward(mask)
        return mask

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        (mask,) = ctx.saved_tensors
        return slopes[0], (slopes[0] * mask).sum()


class TopKGate(Gate):
    """Hold scores and a threshold; ``multipliers``: those of the Lagrangian, the same in all gates."""

    multipliers: Tensor

    def __init__(self, place: Place, multiplier: float) -> None:
        super().__init__(place)
        self.score = nn.Parameter(torch.zeros(place.count))
        self.threshold = nn.Parameter(torch.tensor(OPEN))
        self.register_buffer("multipliers", torch.full((2,), multiplier))

    def forward(self) -> Tensor:
        return TopK.apply(self.score, self.threshold)

    def open(self) -> Tensor:
        return self().detach() > 0

    def scores(self) -> Tensor:
        """Return ``1 + sigmoid(threshold) - place / count``, (count,): above 1 what is kept, whatever the matrix."""
        count = self.place.count
        rank = torch.empty_like(self.score).detach()
        rank[self.score.argsort(descending=True, stable=True)] = torch.arange(count).to(rank)
        return 1 + torch.sigmoid(self.threshold.detach()) - rank / count

    def share(self) -> Tensor:
        """Return the share that is kept, (), whose gradient goes straight through to the threshold."""
        return self.threshold - self.threshold.detach() + kept_by(self.threshold, self.place.count) / self.place.count


@GRADUAL.register("topk")
@dataclass(frozen=True)
class TopKGates(GradualMethod):
    """Keep the best heads, hidden units, and outputs of proj and fc2 (WDPruning's width, Yu et al. 2022, released code).

    Each matrix has scores s, from 0, and a threshold t, from 10: the ``ceil(sigmoid(t) N)`` best stay. The loss gets
    ``m1 (R - target) + m2 (R - target)^2`` where R, the share of the parameters that is left, is above the target; m1 and m2
    rise by ``ascent`` times the excess, and its square, in each step. R counts all parameters, where the code divides blocks
    by 144; its gradient, too, goes straight through to t, and counts are not rounded to multiples of 16.
    ``lr``: of scores; the code's 0.0025 is for 100 epochs of ImageNet, and trains scores at another rate by a mistyped name.
    Raises ``InputError`` for numbers out of range.
    """

    lr: float = 0.05
    threshold_lr: float = 0.3
    multiplier: float = 1.0
    ascent: float = 1.0

    units: ClassVar[tuple[str, ...]] = (HEAD, HIDDEN, OUTPUT)
    alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rates = (self.lr, self.threshold_lr, 1 + self.multiplier, 1 + self.ascent)
        if not all(0 < rate < math.inf for rate in rates) or min(self.multiplier, self.ascent) < 0:
            raise InputError(f"{self}: rates must be positive, multiplier and ascent not negative; all finite")

    def gate(self, place: Place) -> Gate:
        return TopKGate(place, self.multiplier)

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        named = [pair for gate in gates.values() for pair in gate.named_parameters()]
        return [
            {"params": [each for name, each in named if name == kind], "lr": rate, "weight_decay": 0.0, "betas": betas}
            for kind, rate, betas in (
                ("score", self.lr, (0.9, 0.999)),
                ("threshold", self.threshold_lr, (0.0, 0.999)),  # momentum would carry them far beyond the target
            )
        ]

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        """Return the Lagrangian; zero below the target."""
        excess = remaining(gates, progress) - progress.target
        first = next(iter(gates.values()))
        assert isinstance(first, TopKGate)
        linear, square = first.multipliers
        return torch.where(excess > 0, linear * excess + square * excess.square(), 0.0 * excess)

    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        """Raise the multipliers by the excess, if there is any."""
        gates = [gate for layer in layers for gate in (layer.inputs, layer.outputs) if isinstance(gate, TopKGate)]
        own = {gate.place.name: gate for gate in gates}
        excess = (remaining(own, progress) - progress.target).detach().clamp_min(0)
        for gate in gates:
            gate.multipliers += self.ascent * torch.stack([excess, excess.square()])


def remaining(gates: Mapping[str, Gate], progress: Progress) -> Tensor:
    """Return the share of the parameters that the kept parts leave, (), with a gradient for every threshold."""
    prices = progress.prices
    left = torch.zeros((), device=next(iter(gates.values())).threshold.device) + prices.whole.parameters  # type: ignore[arg-type]
    for site in prices.sites:
        inner, outputs = (gates.get(f"{site.name}.{unit}") for unit in (_inner(site), OUTPUT))
        if isinstance(inner, TopKGate) and isinstance(outputs, TopKGate):
            counts = [gate.share() * gate.place.count for gate in (inner, outputs)]
            # modules alone have both gates
            left = left + pruned(site, *counts) - dense_cost(site, 0).parameters  # type: ignore[arg-type]
    return left / prices.whole.parameters


def _inner(site: Any) -> str:
    return HIDDEN if isinstance(site, MlpSite) else HEAD


add_recipe(
    "wd-depth",
    units={"depth": LastBlocks()},
    allocator=EqualError(),
    refit=ClassifierRefit(),
    about="the last blocks left out, the classifier refitted to the dense one: WDPruning's depth in closed form",
)


GATES_ALONE = add_recipe(
    "wdp-gates",
    units={"gated": LearntParts()},
    allocator=EqualError(),
    gradual=TopKGates(),
    about="WDPruning's scores and thresholds of heads, hidden units and outputs, trained alone (Yu et al.)",
)


add_recipe(
    "wdpruning",
    GATES_ALONE,
    labelled=True,
    about="WDPruning's width, trained with the weights on labelled images (Yu et al.)",
)


look(
    "wd-depth", "X", (2, 3), "black", "WDPruning's depth, closed form",
    "last blocks left out, at most as many as fit; the classifier fitted by ridge regression to the dense one, no labels",
)  # fmt: skip


look(
    "wdp-gates", "X", (4, 2), "brown", "WDPruning's gates alone",
    "scores and thresholds on calibration images, width alone",
)  # fmt: skip


look(
    "wdpruning", "X", (), "violet", "WDPruning, width",
    "no classifiers after inner blocks; rates are ours; half of the epochs with gates",
)  # fmt: skip
