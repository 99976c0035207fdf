"""SPViT of He et al. 2024: hidden units that are drawn while training, and attention that may become a convolution."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HIDDEN, MIXER, AttentionSite, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import derived_seed
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.decompose import MLPS, Weights, learnt_scores
from lowrank_vit.stages.gates import GRADUAL, GradualMethod, Progress
from lowrank_vit.stages.gates.expected import Prices, mixer_costs
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, Place
from lowrank_vit.stages.gates.mixing import DrawnGate, MixerGate


@MLPS.register("learnt")
@dataclass(frozen=True)
class LearntUnits:
    """Score a hidden unit by its gate; the second layer's bias takes up the mean of those removed."""

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        return InputSubset.pruned(Directions.by_score(learnt_scores(moments)), weight, moments.mean("input_sum"))


@GRADUAL.register("unit_gates")
@dataclass(frozen=True)
class UnitGates(GradualMethod):
    """Draw hidden units with probabilities ``sigmoid(theta)``, theta starting at 1.5; those above a half stay.

    The loss gets ``strength ((F - target) / dense)^2``, F the multiply-accumulates that open units leave (SPViT, He et al.
    2024). Theirs is in GFLOPs: 20 of DeiT-Tiny's, 3 of DeiT-Small's and 0.08 of DeiT-Base's,
    squared, are 31, 63 and 25 of shares. ``lr``: of theta, which theirs trains for 10 epochs of ImageNet by 0.001.
    Raises ``InputError`` for numbers out of range.
    """

    strength: float = 30.0
    lr: float = 5e-2

    units: ClassVar[tuple[str, ...]] = (HIDDEN,)
    alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.strength < math.inf and 0 < self.lr < math.inf):
            raise InputError(f"strength={self.strength}, lr={self.lr}: from 0 on, and above 0; both finite")

    def gate(self, place: Place) -> Gate:
        return DrawnGate(place)

    def begin(self, gates: Mapping[str, Gate], prices: Prices, target: float, seed: int) -> None:
        """Draw the first units. Raises ``InputError`` where multiply-accumulates cannot be counted."""
        if not prices.tokens:
            raise InputError("the model does not say the size of its images, without which nothing has a price")
        for index, gate in enumerate(gates.values()):
            assert isinstance(gate, DrawnGate)
            gate.seed.fill_(derived_seed(seed, 3, index) % 2**31)
            gate.draw(0)

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        return self.strength * (remaining(gates, progress.prices) - progress.target).square()

    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        for layer in layers:
            if isinstance(layer.inputs, DrawnGate):
                layer.inputs.draw(progress.step)


def remaining(gates: Mapping[str, Gate], prices: Prices) -> Tensor:
    """Return the share of the multiply-accumulates that open units leave, (), with a slope for every theta."""
    whole = float(prices.whole.macs or 0)
    saved = []
    for site in prices.sites:
        gate = gates.get(f"{site.name}.{HIDDEN}")
        if isinstance(site, MlpSite) and isinstance(gate, DrawnGate):
            price = prices.tokens[site.fc2.name] * (site.in_features * site.rows + site.fc2.out_features)
            saved.append(price * (1 - gate.expected()).sum())
        mixer = gates.get(f"{site.name}.{MIXER}")
        if isinstance(site, AttentionSite) and isinstance(mixer, MixerGate):
            saved.append(saved_by(mixer.expected(), site, prices.tokens[site.proj.name]))
    return 1 - torch.stack(saved).sum() / whole


def saved_by(still_open: Tensor, site: AttentionSite, tokens: int) -> Tensor:
    """Return the multiply-accumulates that a mixer's gates save, (); ``still_open``: each with all before it, (3,)."""
    none, one, three, attention = (cost.macs for cost in mixer_costs(site, tokens))
    steps = still_open.new_tensor([one - none, three - one, attention - three])
    return attention - none - (steps * still_open).sum()


@GRADUAL.register("unit_and_mixer_gates")
@dataclass(frozen=True)
class UnitAndMixerGates(UnitGates):
    """Choose also, for each attention module, attention, a 3x3 or a 1x1 convolution, or nothing, by three ordered gates.

    Convolutions share the weights of attention (``modules/conv_mixer.py``); heads are mixed by learnt weights, and what the
    first convolution makes is normalised over the batch. Only attention behind a lone class token has such gates.
    """

    units: ClassVar[tuple[str, ...]] = (HIDDEN, MIXER)
    alone: ClassVar[bool] = False

    def gate(self, place: Place) -> Gate:
        return MixerGate(place) if place.unit == MIXER else DrawnGate(place)

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        """Return probabilities by their own rate, and what mixes and normalises by that of the weights; none decays."""
        named = [pair for gate in gates.values() for pair in gate.named_parameters()]
        return [
            {"params": [each for name, each in named if (name == "theta") == own], "lr": rate, "weight_decay": 0.0}
            for own, rate in ((True, self.lr), (False, lr))
        ]


GATES_ALONE = add_recipe(
    "spvit-he-gates",
    units={"mlp": LearntUnits()},
    allocator=EqualError(),
    gradual=UnitGates(),
    about="SPViT's gates of hidden units, drawn and pulled towards multiply-accumulates, trained alone (He et al.)",
)


add_recipe(
    "spvit-he",
    GATES_ALONE,
    gradual=UnitAndMixerGates(),
    labelled=True,
    about="hidden units, and attention or a convolution, by gates trained with the weights on labelled images (He et al.)",
)


look(
    "spvit-he-gates", ">", (2, 2), "green", "He's SPViT, gates of hidden units alone",
    "no mixers; the weights stay frozen",
)  # fmt: skip


look(
    "spvit-he-gates, multiply-accumulates", "p", (2, 2), "red",
    labels=("he's spvit, gates alone, macs as budget (spvit-he-gates)",),
)  # fmt: skip


look(
    "spvit-he", ">", (), "violet", "He's SPViT",
    "weights go on from the search; strength and rates are ours; half of the epochs with gates",
)  # fmt: skip
