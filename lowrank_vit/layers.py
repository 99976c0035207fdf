"""What a compressed linear layer becomes, and what a quantised one is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.errors import InputError
from lowrank_vit.packing import dequantize, packed_bytes, unpack
from lowrank_vit.records import as_float64

BITS = range(2, 9)  # of a code


class LowRankLinear(nn.Module):
    """``y = (x U) V^T + b`` in two matrix products, plus ``x Z`` where a correction did not fold into U and V.

    ``down.weight`` is ``U^T`` (rank, n), ``up.weight`` is ``V`` (d, rank).
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, correction: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)
        self.correction = correction

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n) to (..., d)."""
        y: Tensor = self.up(self.down(x))
        return y if self.correction is None else y + self.correction(x)

    def extra_repr(self) -> str:
        """Shape and rank for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class QuantizedLinear(nn.Module):
    """``y = x W^T + b`` with W stored as packed integer codes and turned back into numbers at every call.

    ``codes``: packed, uint8; ``scale``: (d,); ``zero_point``: (d,), uint8; ``bias``: (d,) or None. All are buffers: there
    is nothing to train. Nothing is cached, so that codes take no more memory than in the file. W is restored in the type
    of ``scale``, float32 in a loaded model, and the product is one in the type of x.
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
        """W, (d, n), as the codes have it."""
        codes = unpack(self.codes, self.bits, self.in_features * self.out_features)
        return dequantize(codes.view(self.out_features, self.in_features), self.scale, self.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n) to (..., d)."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Shape and bits for the printed module."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def check_bits(bits: int) -> None:
    """Raise ``InputError`` unless ``bits`` is a whole number from 2 to 8."""
    if bits not in BITS:
        raise InputError(f"weights cannot be quantised to {bits!r} bits: choose 2 to 8, or 16 for a float16 file")


class SmallMlp(nn.Module):
    """An MLP with fewer hidden units; the layers are called ``fc1`` and ``fc2`` as timm's are."""

    def __init__(self, in_features: int, hidden: int, out_features: int, bias: bool, act: nn.Module) -> None:
        super().__init__()
        self.config = {"in_features": in_features, "hidden": hidden, "out_features": out_features, "bias": bias}
        self.fc1 = nn.Linear(in_features, hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(hidden, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., n) to (..., d)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


def balance(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``U, V`` of the same product with ``U^T U = V^T V`` diagonal: ``sqrt(S)`` on both sides.

    Training and quantising unbalanced factors destroys them. u: (n, r), v: (d, r), r at most min(n, d).
    """
    if len(u) < len(v):
        v, u = balance(v, u)
        return u, v
    right, upper = torch.linalg.qr(v)
    left = u @ upper.T
    squared, rotation = torch.linalg.eigh(left.T @ left)  # = B S^2 B^T, so that (U R^T B S^-1/2) (Q B S^1/2)^T is U V^T
    root = squared.clamp_min(1e-16 * squared[-1]).clamp_min(torch.finfo(squared.dtype).tiny).pow(0.25).flip(0)
    rotation = rotation.flip(1)
    return left @ rotation / root, right @ rotation * root


def low_rank_linear(
    u: Tensor, v: Tensor, bias: Tensor | None, *, like: nn.Linear, correction: nn.Module | None = None
) -> LowRankLinear:
    """A ``LowRankLinear`` of balanced factors, in the dtype and on the device of the dense layer it replaces."""
    u, v = balance(as_float64(u), as_float64(v))
    layer = LowRankLinear(len(u), len(v), u.shape[1], bias is not None, correction)
    layer.down.weight.data = u.T.contiguous()
    layer.up.weight.data = v.contiguous()
    if bias is not None:
        layer.up.bias.data = bias.detach().clone()
    return layer.to(device=like.weight.device, dtype=like.weight.dtype)
