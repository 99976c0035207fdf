"""A low-rank Z: the paper's choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.modules import Replacement
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.compensate import COMPENSATIONS, State, check_budget, share


class LowRankCorrection(Replacement):
    """Compute ``x G Y^T`` with ``G: (n, q)``, ``Y: (d, q)``. Usually folded into the layer's own factors instead."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.config = {"kind": "low_rank", "in_features": in_features, "out_features": out_features, "rank": rank}
        self.g = nn.Parameter(torch.zeros(in_features, rank))
        self.y = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.g @ self.y.T


@COMPENSATIONS.register("low_rank")
@storable
@dataclass(frozen=True)
class LowRank:
    """Fit ``Z = G Y^T`` of rank ``q = floor(budget * n d / (n + d))``, at least 1: the paper's equations (10)-(12).

    See section 3.3 of the paper. The gradient solvers start at ``Y = 0`` and a small random G, because ``G = Y = 0`` is a
    stationary point of (11)(12). The minimiser of (10) is a reduced-rank regression, contrary to what the paper says: with
    ``M = L L^T`` and Q the q leading right singular vectors of ``L^T R`` it is ``Z = R Q Q^T``, and it loses the squares of
    the other singular values (Eckart and Young). No inverse, so M may be singular.
    """

    budget: float = 0.05  # share of the layer's weight parameters
    scale: float = 0.02  # standard deviation of the random factor; the solvers end at the same loss from 0.001 to 0.05

    kind: ClassVar[str] = "low_rank"
    module_type: ClassVar[type[nn.Module]] = LowRankCorrection

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def rank(self, n: int, d: int) -> int:
        """Return q for a layer (n, d)."""
        return max(1, share(self.budget, n * d / (n + d)))

    def parameter_count(self, n: int, d: int) -> int:
        return self.rank(n, d) * (n + d)

    def start(self, residual: Tensor, moment: Tensor, seeds: Sequence[int]) -> State:
        """Draw a seeded random G, the same on every device, and set Y = 0. R and M do not matter."""
        _, n, d = residual.shape
        q = self.rank(n, d)
        g = [torch.randn(n, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        return State((n, d), {"g": self.scale * torch.stack(g).to(residual), "y": residual.new_zeros(len(g), d, q)}, {})

    def dense(self, state: State) -> Tensor:
        return state.trainable["g"] @ state.trainable["y"].mT

    def product(self, state: State, x: Tensor) -> Tensor:
        return x @ state.trainable["g"] @ state.trainable["y"].mT

    def closed_form(self, residual: Tensor, moment: Tensor) -> State:
        """Compute ``Z = R Q Q^T``, each direction's length shared equally between G and Y."""
        _, n, d = residual.shape
        roots = torch.stack([cholesky_root(matrix)[0] for matrix in moment])
        _, _, vt = torch.linalg.svd(roots.mT @ residual, full_matrices=False)
        y = vt[:, : self.rank(n, d)].mT
        g = residual @ y
        length = g.norm(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(g.dtype).tiny)
        return State((n, d), {"g": g / length, "y": y * length}, {})

    def factors(self, state: State, index: int) -> tuple[Tensor, Tensor]:
        return state.trainable["g"][index].detach(), state.trainable["y"][index].detach()

    def module(self, state: State, index: int) -> LowRankCorrection:
        g, y = self.factors(state, index)
        module = LowRankCorrection(len(g), len(y), g.shape[1])
        module.g.data, module.y.data = g.clone(), y.clone()
        return module
