"""Parts that are drawn by learnt probabilities while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_vit.runtime.hardware import derived_seed
from lowrank_vit.stages.gates.gates import Gate, Place

START = 1.5  # of the thresholds, whose sigmoid is 0.82


class DrawnGate(Gate):
    """Keep each part with the probability ``sigmoid(theta)``; ``noise``, logistic, decides while training.

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
        """Return which parts are drawn, (count,), with a straight-through gradient."""
        logits = self.theta + self.noise
        soft = logits.sigmoid()
        return (logits > 0).to(soft) + (soft - soft.detach())

    def expected(self) -> Tensor:
        """Return which parts are open, (count,), with the slope of a second sigmoid, as in the released code."""
        soft = (self.theta.sigmoid() - 0.5).sigmoid()
        return (self.theta > 0).to(soft) + (soft - soft.detach())

    def open(self) -> Tensor:
        """Tell which parts have a probability above a half, (count,)."""
        return self.theta.detach() > 0

    def scores(self) -> Tensor:
        return self.theta.detach().sigmoid()
