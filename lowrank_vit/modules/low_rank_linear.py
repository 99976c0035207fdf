"""The module that replaces a linear layer: two thin ones, and a correction beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.linalg.pairs import balance
from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_pivoted
from lowrank_vit.records.moments import as_float64


@REPLACEMENTS.register("linear")
class LowRankLinear(nn.Module):
    """Compute ``y = (x U) V^T + b`` in two matrix products, plus ``x Z`` where a correction did not fold into U and V.

    ``down.weight`` is ``U^T`` (rank, n), ``up.weight`` is ``V`` (d, rank).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, correction: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down: nn.Linear | PivotedLinear = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)
        self.correction = correction

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        y: Tensor = self.up(self.down(x))
        return y if self.correction is None else y + self.correction(x)

    @torch.no_grad()
    def pivot(self) -> None:
        """Stop storing an identity in U; V takes up the change. Raises ``TypeError`` where it is done already."""
        if not isinstance(self.down, nn.Linear):
            raise TypeError("the factors are pivoted already")
        self.down, (square,) = as_pivoted(self.down, [self.rank])
        self.up.weight.data = (as_float64(self.up.weight) @ square.T).to(self.up.weight)

    @property
    def config(self) -> dict[str, Any]:
        """Return the shape, and that of the correction."""
        correction = getattr(self.correction, "config", None)
        shape = {"in_features": self.in_features, "out_features": self.out_features, "rank": self.rank}
        return {**shape, "bias": self.up.bias is not None, "correction": correction}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> LowRankLinear:
        """Make a layer of this shape; the entry ``correction`` is the module itself, or None."""
        return cls(**config)

    def extra_repr(self) -> str:
        """Return shape and rank for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def low_rank_linear(
    u: Tensor, v: Tensor, bias: Tensor | None, *, like: nn.Linear, correction: nn.Module | None = None
) -> LowRankLinear:
    """Make a ``LowRankLinear`` of balanced factors, in the dtype and on the device of the dense layer it replaces."""
    u, v = balance(as_float64(u), as_float64(v))
    layer = LowRankLinear(len(u), len(v), u.shape[1], bias is not None, correction)
    layer.down.weight.data = u.T.contiguous()
    layer.up.weight.data = v.contiguous()
    if bias is not None:
        layer.up.bias.data = bias.detach().clone()
    return layer.to(device=like.weight.device, dtype=like.weight.dtype)
