"""Hidden units that are drawn while training, and a pull towards a number of multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.records.layers import HIDDEN, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.trainer import derived_seed
from lowrank_vit.stages.gradual import GRADUAL, Progress, StillGates
from lowrank_vit.stages.gradual.expected import Prices
from lowrank_vit.stages.gradual.gates import Gate, GatedLayer, Place

START = 1.5  # of the thresholds, whose sigmoid is 0.82


class DrawnGate(Gate):
    """Parts that are there with the probability ``sigmoid(theta)``; ``noise``, logistic, decides while training.

    Without noise, those of a probability above a half are there. The slope is that of the sigmoid at ``theta + noise``.
    """

    noise: Tensor
    seed: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.theta = nn.Parameter(torch.full((place.count,), START))
        self.register_buffer("noise", torch.zeros(place.count))
        self.register_buffer("seed", torch.tensor(0))

    def draw(self, step: int) -> None:
        """Draw the noise of a step, the same in all processes."""
        generator = torch.Generator().manual_seed(derived_seed(int(self.seed), step))
        uniform = torch.rand(self.noise.shape, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        self.noise.copy_(torch.logit(uniform))

    def forward(self) -> Tensor:
        """Return which parts are drawn, (count,), straight through."""
        logits = self.theta + self.noise
        soft = logits.sigmoid()
        return (logits > 0).to(soft) + (soft - soft.detach())

    def expected(self) -> Tensor:
        """Return which parts are open, (count,), whose slope is that of a second sigmoid, as in the released code."""
        soft = (self.theta.sigmoid() - 0.5).sigmoid()
        return (self.theta > 0).to(soft) + (soft - soft.detach())

    def open(self) -> Tensor:
        """Tell which parts have a probability above a half, (count,)."""
        return self.theta.detach() > 0

    def scores(self) -> Tensor:
        """Return the probabilities, (count,)."""
        return self.theta.detach().sigmoid()


@GRADUAL.register("unit_gates")
@dataclass(frozen=True)
class UnitGates(StillGates):
    """Draw hidden units with probabilities ``sigmoid(theta)``, theta from 1.5 on; they stay where it is above a half.

    The loss gets ``strength ((F - target) / dense)^2``, F the multiply-accumulates that open units leave (SPViT, He et al.
    2024, whose mixers are left out here). Theirs is in GFLOPs: 20 of DeiT-Tiny's, 3 of DeiT-Small's and 0.08 of DeiT-Base's,
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
        """Make the gates of a unit."""
        return DrawnGate(place)

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        """Return one group, which does not decay."""
        parameters = [each for gate in gates.values() for each in gate.parameters()]
        return [{"params": parameters, "lr": self.lr, "weight_decay": 0.0}]

    def begin(self, gates: Mapping[str, Gate], prices: Prices, target: float, seed: int) -> None:
        """Draw the first units. Raises ``InputError`` where multiply-accumulates cannot be counted."""
        if not prices.tokens:
            raise InputError("the model does not say the size of its images, without which nothing has a price")
        for index, gate in enumerate(gates.values()):
            assert isinstance(gate, DrawnGate)
            gate.seed.fill_(derived_seed(seed, 3, index) % 2**31)
            gate.draw(0)

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        """Return the squared distance from the target, in shares of the dense model's multiply-accumulates."""
        return self.strength * (remaining(gates, progress.prices) - progress.target).square()

    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        """Draw the units of the next step."""
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
    return 1 - torch.stack(saved).sum() / whole
