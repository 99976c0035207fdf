"""A diagonal Z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import Replacement
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.compensate import COMPENSATIONS, State
from lowrank_vit.stages.compensate.support import FixedSupport


class DiagonalCorrection(Replacement):
    """Scale the first min(n, d) inputs; pad with zeros where d is larger."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.config = {"kind": "diagonal", "in_features": in_features, "out_features": out_features}
        self.out_features = out_features
        self.values = nn.Parameter(torch.zeros(min(in_features, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.values)
        return F.pad(x[..., :count] * self.values, (0, self.out_features - count))


@COMPENSATIONS.register("diagonal")
@storable
@dataclass(frozen=True)
class Diagonal(FixedSupport):
    """Fit entries (i, i), i < min(n, d): the paper's diagonal Z, which it leaves undefined for n != d.

    Column j has one entry, so the minimiser of (10) is ``z_j = (M R)_jj / M_jj``.
    """

    revision: ClassVar[int] = 1

    budget: float = 0.05  # no effect, as there is nothing to choose; all kinds have this field

    kind: ClassVar[str] = "diagonal"
    module_type: ClassVar[type[nn.Module]] = DiagonalCorrection

    def parameter_count(self, n: int, d: int) -> int:
        return min(n, d)

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return the diagonal's flat positions, (L, min(n, d)), whatever M and R are."""
        count, n, d = residual.shape
        positions = torch.arange(min(n, d), device=residual.device) * (d + 1)
        return {"positions": positions.repeat(count, 1)}

    def module(self, state: State, index: int) -> DiagonalCorrection:
        module = DiagonalCorrection(*state.shape)
        module.values.data = state.trainable["entries"][index].detach().clone()
        return module
