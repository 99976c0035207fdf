"""A diagonal Z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.compensate import COMPENSATIONS, State
from lowrank_vit.compensate.support import FixedSupport


class DiagonalCorrection(nn.Module):
    """The first min(n, d) inputs, scaled, and zeros where d is larger."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.zeros(min(in_features, out_features)))

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds the module without its values."""
        return {"kind": "diagonal", "in_features": self.in_features, "out_features": self.out_features}

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n) to (..., d)."""
        count = len(self.values)
        return F.pad(x[..., :count] * self.values, (0, self.out_features - count))


@COMPENSATIONS.register("diagonal")
@dataclass(frozen=True)
class Diagonal(FixedSupport):
    """Entries (i, i), i < min(n, d): the paper's diagonal Z, which it leaves undefined for n != d.

    Column j has one entry, so the minimiser of (10) is ``z_j = (M R)_jj / M_jj``.
    """

    budget: float = 0.05  # without effect: there is nothing to choose; here so that all kinds are made alike

    kind: ClassVar[str] = "diagonal"
    module_type: ClassVar[type[nn.Module]] = DiagonalCorrection

    def parameter_count(self, n: int, d: int) -> int:
        """``min(n, d)``."""
        return min(n, d)

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """The diagonal, whatever M and R are."""
        count, n, d = residual.shape
        positions = torch.arange(min(n, d), device=residual.device) * (d + 1)
        return {"positions": positions.repeat(count, 1)}

    def module(self, state: State, index: int) -> DiagonalCorrection:
        """The deployable module of one layer."""
        module = DiagonalCorrection(*state.shape)
        module.values.data = state.trainable["entries"][index].detach().clone()
        return module
