"""The layers that replace those of values and outputs in an attention module whose rest stays as it is.

Zeros take the place of the directions that the values have lost, so that the module around them, whatever it does with
queries and keys (norms, rotations, cosines, biases by position), runs unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.low_rank_attention import Heads, balance_rows


@REPLACEMENTS.register("values")
class NarrowValues(nn.Module):
    """Compute values of widths given per head, after ``others`` outputs that stay: those of queries and keys."""

    def __init__(self, in_features: int, out_features: int, others: int, value: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.others = in_features, out_features, others
        self.heads = Heads(value, (out_features - others) // len(value))
        self.linear = nn.Linear(in_features, others + sum(value), bias=bias)

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        shape = {"in_features": self.in_features, "out_features": self.out_features, "others": self.others}
        return {**shape, "value": self.heads.widths, "bias": self.linear.bias is not None}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> NarrowValues:
        """Make a layer of this shape."""
        return cls(**config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., others + heads * width)."""
        others, values = self.linear(x).tensor_split([self.others], -1)
        return torch.cat([others, self.heads.fill(values)], -1)

    def extra_repr(self) -> str:
        """Return what is left of the heads for the printed module."""
        return f"value={self.heads.widths}"


@REPLACEMENTS.register("outputs")
class NarrowOutput(nn.Module):
    """Compute the output of an attention whose values have fewer directions, given per head."""

    def __init__(self, in_features: int, out_features: int, value: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.heads = Heads(value, in_features // len(value))
        self.up = nn.Linear(sum(value), out_features)

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        return {"in_features": self.in_features, "out_features": self.out_features, "value": self.heads.widths}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> NarrowOutput:
        """Make a layer of this shape."""
        return cls(**config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., heads * width) to (..., d)."""
        y: Tensor = self.up(self.heads.pick(x))
        return y

    def extra_repr(self) -> str:
        """Return what is left of the heads for the printed module."""
        return f"value={self.heads.widths}"


@torch.no_grad()
def balance_values(attention: nn.Module) -> None:
    """Balance the directions of an attention module with narrow values, as ``LowRankAttention`` does; others stay."""
    layers: list[Any] = list(attention.children())
    values = [layer for layer in layers if hasattr(layer, "others")]  # of a pooling, keys
    outputs = [layer for layer in layers if isinstance(layer, NarrowOutput)]
    for before, after in zip(values, outputs, strict=True):
        factor = balance_rows(before.linear.weight[before.others :], after.up.weight.T)
        if before.linear.bias is not None:
            before.linear.bias[before.others :].mul_(factor[:, 0])
