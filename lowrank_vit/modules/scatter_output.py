"""A linear layer that makes some of its outputs; the others are zero, so that a stream it is added to keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("scatter")
class ScatterOutput(nn.Module):
    """Compute ``y[kept] = x W + b``, zero elsewhere. ``kept``: ascending indices of outputs, which are not parameters.

    Raises ``ValueError`` for indices that are not.
    """

    places: Tensor

    def __init__(self, in_features: int, out_features: int, kept: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        if list(kept) != sorted(set(kept)) or any(not 0 <= index < out_features for index in kept):
            raise ValueError(f"kept outputs are ascending indices below {out_features}, not {list(kept)}")
        self.in_features, self.out_features, self.kept = in_features, out_features, list(kept)
        self.up = nn.Linear(in_features, len(self.kept), bias=bias)
        places = torch.full((out_features,), len(self.kept))  # of the zero behind the outputs that are made
        places[self.kept] = torch.arange(len(self.kept))
        self.register_buffer("places", places, persistent=False)

    @property
    def weight(self) -> Tensor:
        """Return the weight of the outputs that are made, (kept, n)."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        """Return their bias, (kept,)."""
        return self.up.bias

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        shape = {"in_features": self.in_features, "out_features": self.out_features}
        return {**shape, "kept": self.kept, "bias": self.up.bias is not None}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> ScatterOutput:
        """Make a layer of this shape."""
        return cls(**config)

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, kept: Tensor) -> ScatterOutput:
        """Keep some outputs of a linear layer, (kept,), on its device and in its type."""
        small = cls(linear.in_features, linear.out_features, kept.tolist(), linear.bias is not None)
        small.to(device=linear.weight.device, dtype=linear.weight.dtype)
        small.up.weight.copy_(linear.weight[kept])
        if linear.bias is not None:
            small.up.bias.copy_(linear.bias[kept])
        return small

    def spread(self, values: Tensor) -> Tensor:
        """Write values of the outputs that are made, (..., kept), to their places, (..., d)."""
        return torch.cat([values, values.new_zeros(*values.shape[:-1], 1)], -1)[..., self.places]

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        return self.spread(self.up(x))

    def extra_repr(self) -> str:
        """Return the shape for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.kept)}"
