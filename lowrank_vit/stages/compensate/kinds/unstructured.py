"""An unstructured sparse Z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.modules import Replacement
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.compensate import COMPENSATIONS, State, check_budget, share
from lowrank_vit.stages.compensate.support import FixedSupport, solve_support


class UnstructuredCorrection(Replacement):
    """Compute ``x Z``, with Z built from its entries at every call: small to store, as slow as a dense layer."""

    positions: Tensor

    def __init__(self, in_features: int, out_features: int, count: int) -> None:
        super().__init__()
        self.config = {"kind": "unstructured_sparse", "in_features": in_features, "out_features": out_features}
        self.config["count"] = count
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.zeros(count))
        self.register_buffer("positions", torch.zeros(count, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.values.new_zeros(self.in_features * self.out_features)
        return x @ flat.scatter(0, self.positions.long(), self.values).view(self.in_features, self.out_features)


@COMPENSATIONS.register("unstructured_sparse")
@storable
@dataclass(frozen=True)
class UnstructuredSparse(FixedSupport):
    """Fit ``floor(budget * n d)`` entries anywhere, at least 1: the paper's unstructured sparse Z.

    The support is picked greedily in ``rounds``: each takes the entries that, moved alone, would lower (10) most, by
    ``(M (R - Z))_ij^2 / M_ii``, and refits Z on the entries taken so far. One round ignores that inputs are correlated
    (DeiT-Tiny: eight rounds leave 1 to 26% less loss than one).
    """

    revision: ClassVar[int] = 1

    budget: float = 0.05  # share of the layer's weight parameters
    rounds: int = 8

    kind: ClassVar[str] = "unstructured_sparse"
    module_type: ClassVar[type[nn.Module]] = UnstructuredCorrection

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def parameter_count(self, n: int, d: int) -> int:
        """Count the entries; their positions do not count."""
        return max(1, share(self.budget, n * d))

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return flat positions, (L, k), in increasing order."""
        return {"positions": torch.stack([self._select(*layer) for layer in zip(residual, moment, strict=True)])}

    def _select(self, residual: Tensor, moment: Tensor) -> Tensor:
        """Return the positions of one layer, (k,). residual: (n, d); moment: (n, n)."""
        n, d = residual.shape
        count, target = self.parameter_count(n, d), moment @ residual
        curvature = moment.diagonal()[:, None].clamp_min(torch.finfo(moment.dtype).tiny)
        positions = torch.zeros(0, dtype=torch.int64, device=residual.device)
        z = residual.new_zeros(n * d)
        for step in range(1, self.rounds + 1):
            gain = ((target - moment @ z.view(n, d)).square() / curvature).flatten()
            gain[positions] = -1.0
            new = gain.topk(count * step // self.rounds - len(positions)).indices
            positions = torch.cat([positions, new])
            if step < self.rounds:
                z[positions] = solve_support(moment, target, positions)
        return positions.sort().values

    def module(self, state: State, index: int) -> UnstructuredCorrection:
        values = state.trainable["entries"][index].detach()
        module = UnstructuredCorrection(*state.shape, len(values))
        module.values.data = values.clone()
        module.positions = state.fixed["positions"][index].int()
        return module
