"""A linear layer that reads some of its inputs, so that the stream it stands in keeps its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("select")
class SelectInput(nn.Module):
    """Compute ``y = x[kept] W + b``. ``kept``: ascending indices of inputs, which are not parameters.

    It has the sizes, weight and bias that modules around a linear layer ask for. Raises ``ValueError`` for other indices.
    """

    places: Tensor

    def __init__(self, in_features: int, out_features: int, kept: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        whole = all(type(index) is int for index in kept)
        if not whole or list(kept) != sorted(set(kept)) or any(not 0 <= index < in_features for index in kept):
            raise ValueError(f"kept inputs are ascending indices below {in_features}, not {list(kept)}")
        self.in_features, self.out_features, self.kept = in_features, out_features, list(kept)
        self.up = nn.Linear(len(self.kept), out_features, bias=bias)
        self.register_buffer("places", torch.tensor(self.kept, dtype=torch.long), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Return the weight of the inputs that are read, (d, kept)."""
        return self.up.weight

    @property
    def bias(self) -> Tensor | None:
        """Return the bias, (d,)."""
        return self.up.bias

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        shape = {"in_features": self.in_features, "out_features": self.out_features}
        return {**shape, "kept": self.kept, "bias": self.up.bias is not None}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> SelectInput:
        """Make a layer of this shape. Raises ``ValueError`` where ``dense`` is given inputs of another width."""
        small = cls(**config)
        width = getattr(dense, "in_features", small.in_features)
        if width != small.in_features:
            raise ValueError(f"in_features is {small.in_features}, of a layer that is given {width}")
        return small

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Linear, kept: Tensor) -> SelectInput:
        """Read some inputs of a linear layer, (kept,), on its device and in its type."""
        small = cls(linear.in_features, linear.out_features, kept.tolist(), linear.bias is not None)
        small.to(device=linear.weight.device, dtype=linear.weight.dtype)
        small.up.weight.copy_(linear.weight[:, kept])
        if linear.bias is not None:
            small.up.bias.copy_(linear.bias)
        return small

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        y: Tensor = self.up(x.index_select(-1, self.places))
        return y

    def extra_repr(self) -> str:
        """Return the shape for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, kept={len(self.kept)}"
