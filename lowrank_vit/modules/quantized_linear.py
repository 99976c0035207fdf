"""A linear layer with its weight in packed codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.quantized_linear import dequantize, packed_bytes, unpack
from lowrank_vit.runtime.errors import InputError

BITS = range(2, 9)  # of a code


@REPLACEMENTS.register("quantized")
class QuantizedLinear(nn.Module):
    """Compute ``y = x W^T + b`` with W stored as packed integer codes and restored at every call.

    ``codes``: packed, uint8; ``scale``: (d,); ``zero_point``: (d,), uint8; ``bias``: (d,) or None. All are buffers: there
    is nothing to train. Nothing is cached, so that codes take no more memory than in the file. W is restored in the type
    of ``scale``, float32 in a loaded model, and the product is computed in the type of x.
    Raises ``InputError`` unless bits is 2 to 8.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bits: int, bias: bool = True) -> None:
        super().__init__()
        check_bits(bits)
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        self.register_buffer("codes", torch.zeros(packed_bytes(in_features * out_features, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("zero_point", torch.zeros(out_features, dtype=torch.uint8))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @property
    def weight(self) -> Tensor:
        """Restore W, (d, n), from the codes."""
        codes = unpack(self.codes, self.bits, self.in_features * self.out_features)
        return dequantize(codes.view(self.out_features, self.in_features), self.scale, self.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @property
    def config(self) -> dict[str, Any]:
        """Return shape and bits."""
        shape = {"in_features": self.in_features, "out_features": self.out_features}
        return {**shape, "bits": self.bits, "bias": self.bias is not None}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> QuantizedLinear:
        """Make a layer of this shape."""
        return cls(config["in_features"], config["out_features"], config["bits"], config["bias"])

    def extra_repr(self) -> str:
        """Return shape and bits for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def check_bits(bits: int) -> None:
    """Raise ``InputError`` unless ``bits`` is a whole number from 2 to 8."""
    if bits not in BITS:
        raise InputError(f"weights cannot be quantised to {bits!r} bits: choose 2 to 8, or 16 for a float16 file")
