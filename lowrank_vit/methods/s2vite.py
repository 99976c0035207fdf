"""S2ViTE: heads and hidden units that drop and grow in training (Chen et al. 2021); and SSP, its one-shot baseline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.methods.spvit_he import LearntUnits
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.factors import Directions, InputSubset, WholeHeads
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HEAD, HIDDEN, AttentionSite, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import derived_seed
from lowrank_vit.stages.allocate.rules import EqualError, Uniform
from lowrank_vit.stages.decompose import MLPS, WHOLE_HEADS, Weights, learnt_scores
from lowrank_vit.stages.gates import GRADUAL, GradualMethod, Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, MaskGate, Place

STEPS = 1000  # of the search for the share that meets the budget


@WHOLE_HEADS.register("salience")
@dataclass(frozen=True)
class AttentionSalience:
    """Score a head by ``|sum A * dL/dA|``, its first-order Taylor term (S2ViTE's death score, Chen et al. 2021).

    A: all its attention in an image; root mean square over images, for labels that the model draws itself: their mean is
    zero. What is lost is the share of the module's scores that is left out, so that modules compare.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gate_fisher"})

    def __call__(self, site: AttentionSite, moments: Moments) -> WholeHeads:
        fisher = moments.mean("gate_fisher").unflatten(0, (-1, site.head_width)).unflatten(2, (-1, site.head_width))
        scores = fisher.sum((1, 3)).diagonal().clamp_min(0).sqrt()
        return WholeHeads(Directions.by_share(scores))


@MLPS.register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """Score a hidden unit by ``||row of fc1||_1 + ||column of fc2||_1`` (S2ViTE's death score, Chen et al. 2021).

    With gates both rows count. What is lost is the share of the MLP's scores that is left out.
    """

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset(),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        rows = made[0].abs().sum(0).unflatten(0, (site.rows, -1)).sum(0)
        return InputSubset.pruned(Directions.by_share(rows + weight.abs().sum(1)), weight)


@WHOLE_HEADS.register("learnt")
@dataclass(frozen=True)
class LearntHeads:
    """Score a head by its gate; the output's bias takes up the mean of those removed."""

    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, site: AttentionSite, moments: Moments) -> WholeHeads:
        scores = learnt_scores(moments)[:: site.head_width]  # all dimensions of a head have its score
        return WholeHeads(Directions.by_score(scores), moments.mean("input_sum"))


class LiveGate(MaskGate):
    """Hold a mask of live parts, and how much each was worth when they were last scored."""

    worth: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.register_buffer("worth", torch.zeros(place.count))

    def scores(self) -> Tensor:
        """Return scores, (count,), of which those of live parts are at least 1, and those of dead ones below."""
        return self.mask + self.worth / (1 + self.worth)


def kept_count(count: int, share: float) -> int:
    """Return ``int(count * share)``, at least one.

    >>> kept_count(6, 4 / 6), kept_count(1536, 0.6)
    (4, 921)
    """
    return max(1, math.floor(count * share + 1e-9))


def moving_share(step: int, last: int, first: float, end: float) -> float:
    """Return the share of live parts that die at a step: a cosine from ``first`` to ``end`` at the step ``last``."""
    return end + 0.5 * (first - end) * (1 + math.cos(math.pi * min(step, last) / last))


@GRADUAL.register("drop_grow")
@dataclass(frozen=True)
class DropAndGrow(GradualMethod):
    """Train with the same share of every layer's heads and hidden units; now and then some die, and as many grow.

    S2ViTE (Chen et al. 2021), ``updates`` times until the share ``until`` of the steps. Those hidden units die whose
    ``||fc1 row||_1 + ||fc2 column||_1`` is least, and those heads whose ``|sum A dL/dA|`` is, A the head's attention: that
    is ``|sum W dL/dW|`` over the output layer's columns of the head. Those grow whose columns have the largest L1 norm of
    the gradient; they begin at zero. The share is the largest whose model keeps within the budget. At the start random parts
    live. Dead units keep their rows of fc1, and heads those of qkv: they make nothing, and are removed in the end.
    Raises ``InputError`` for numbers out of range.
    """

    updates: int = 40
    until: float = 0.8
    first: float = 0.5
    end: float = 0.005

    units: ClassVar[tuple[str, ...]] = (HEAD, HIDDEN)
    alone: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.updates < 1 or not (0 < self.until <= 1 and 0 <= self.end <= self.first <= 1):
            raise InputError(f"{self}: at least one update; until up to 1; end, first from 0 to 1, and end the lesser")

    def gate(self, place: Place) -> Gate:
        return LiveGate(place)

    def begin(self, gates: Mapping[str, Gate], prices: Prices, target: float, seed: int) -> None:
        """Let random parts live, as many as the budget has room for."""
        counts = live_counts(gates, prices, target)
        for index, (name, gate) in enumerate(gates.items()):
            assert isinstance(gate, LiveGate)
            generator = torch.Generator().manual_seed(derived_seed(seed, index))
            chosen = torch.randperm(gate.place.count, generator=generator)[: counts[name]]
            gate.mask.zero_()[chosen.to(gate.mask.device)] = 1

    def before_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        """Exchange some parts if it is time to; the weights of dead ones do not move."""
        last = max(1, int(self.until * progress.steps))
        interval = max(1, last // self.updates)
        due = progress.step > 0 and progress.step % interval == 0 and progress.step <= last
        for layer in layers:
            if due:
                exchange(layer, moving_share(progress.step, last, self.first, self.end))
            gate, weight = layer.inputs, layer.layer.weight
            assert gate is not None
            weight.grad.mul_(gate.channels())

    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        for layer in layers:
            assert layer.inputs is not None
            layer.layer.weight.data.mul_(layer.inputs.channels())


def live_counts(gates: Mapping[str, Gate], prices: Prices, target: float) -> dict[str, int]:
    """Return how many parts of each unit live, by the largest common share whose model keeps within the budget."""
    counts: dict[str, int] = {}
    for step in range(STEPS, 0, -1):
        counts = {name: kept_count(gate.place.count, step / STEPS) for name, gate in gates.items()}
        opens = {name: torch.arange(gate.place.count) < counts[name] for name, gate in gates.items()}
        if prices.expected(opens).parameters <= target * prices.whole.parameters:
            return counts
    return counts


@torch.no_grad()
def exchange(layer: GatedLayer, share: float) -> None:
    """Drop ``share`` of a layer's live parts, those of least worth, and grow as many dead ones, by their gradients."""
    gate, weight, slope = layer.inputs, layer.layer.weight, layer.layer.weight.grad
    assert isinstance(gate, LiveGate)
    live, count = gate.open(), gate.place.count
    if gate.place.unit == HEAD:
        gate.worth.copy_((weight * slope).sum(0).unflatten(0, (count, -1)).sum(1).abs())
    else:
        rows = sum(maker.weight.abs().sum(1).unflatten(0, (-1, count)).sum(0) for maker in layer.makers)
        gate.worth.copy_(weight.abs().sum(0) + rows)
    growth = slope.abs().sum(0).unflatten(0, (count, -1)).sum(1)
    moving = min(int(share * int(live.sum())), int((~live).sum()))
    dying = gate.worth.masked_fill(~live, math.inf).argsort(stable=True)[:moving]
    growing = growth.masked_fill(live, -math.inf).argsort(descending=True, stable=True)[:moving]
    gate.mask[dying], gate.mask[growing] = 0, 1


add_recipe(
    "ssp",
    units={"whole_heads": AttentionSalience(), "mlp": Magnitude()},
    allocator=Uniform(),
    objective=Classification(sampling="signs"),
    about="one-shot salience pruning of heads and hidden units, S2ViTE's baseline (Chen et al.)",
)


add_recipe(
    "s2vite",
    units={"whole_heads": LearntHeads(), "mlp": LearntUnits()},
    allocator=EqualError(),
    gradual=DropAndGrow(),
    labelled=True,
    about="heads and hidden units that drop and grow while the model is trained on labelled images "
    "(S2ViTE, Chen et al.)",
)


look("ssp", "s", (4, 2), "brown", "S2ViTE's one-shot baseline", "without the training that follows")


look("ssp, multiply-accumulates", "s", (2, 2), "red", labels=("s2vite's one-shot baseline, macs as budget (ssp)",))


look(
    "s2vite", "s", (), "olive", "S2ViTE's schedule, from trained weights",
    "it starts from random ones; half of the epochs while units change",
)  # fmt: skip


look("s2vite, from scratch", "s", (3, 3), "green", labels=("s2vite, from scratch (s2vite)",))


KEPT = "attention outputs and biases uncounted as pruned: 54.5M if what is pruned is physically removed"
FULL = ("Chen et al. 2021", "full-ft", "600, from scratch")
ONE_SHOT = ("Chen et al. 2021, as quoted in SAViT", "full-ft", "not found", "none", "training follows the pruning")


PRINTED.add(
    "s2vite",
    (
        Printed("deit_b", "S2ViTE", "56.8M (-34%)", 82.22, *FULL, note=KEPT),
        Printed("deit_b", "SSP", "56.8M (-34%)", 80.80, *ONE_SHOT),
        Printed("deit_t", "S2ViTE", "4.2M (-27%)", 70.12, *FULL),
        Printed("deit_t", "SSP", "4.2M (-27%)", 68.59, *ONE_SHOT),
    ),
)
