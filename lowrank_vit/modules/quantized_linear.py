"""A linear layer with its weight in packed codes of 2 to 8 bits.

A count of bits is a sum of powers of two (7 = 4 + 2 + 1), so a code is cut into parts of these widths, lowest bits and
widest part first, and each part is packed on its own with no bit lost. A part of width w goes into
``m = ceil(count * w / 8)`` bytes: byte j holds the parts of codes j, j + m, j + 2m, ..., the first in its lowest bits.
Neighbouring codes lie in neighbouring bytes, so that unpacking is a few shifts of whole arrays.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.runtime.errors import InputError

WIDTHS = (8, 4, 2, 1)
BITS = range(2, 9)  # of a code


def _plane_bytes(count: int, bits: int) -> list[tuple[int, int]]:
    """Return width and bytes of each part, in their order."""
    return [(width, -(-count * width // 8)) for width in WIDTHS if bits & width]


def packed_bytes(count: int, bits: int) -> int:
    """Count the bytes of ``count`` packed codes: exactly ``count * bits / 8`` where count is a multiple of 8.

    >>> packed_bytes(16, 3), packed_bytes(5, 4)
    (6, 3)
    """
    return sum(size for _, size in _plane_bytes(count, bits))


def _shifts(width: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8, device=like.device)[:, None]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of any shape, uint8, each below ``2^bits``, into uint8 ``(packed_bytes(count, bits),)``.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()  # 1 + 16 * 3, 2
    [49, 2]
    """
    rest, planes = codes.flatten(), []
    for width, size in _plane_bytes(codes.numel(), bits):
        part = rest & (2**width - 1)
        rows = torch.nn.functional.pad(part, (0, size * 8 // width - len(part))).view(8 // width, size)
        planes.append((rows << _shifts(width, rows)).sum(0, dtype=torch.uint8))
        if width < 8:
            rest = rest >> width
    return torch.cat(planes)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the ``count`` codes, uint8 (count,), that were packed.

    >>> unpack(torch.tensor([49, 2], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    if bits == 8:
        return packed
    codes, start, shift = torch.zeros((), dtype=torch.uint8, device=packed.device), 0, 0
    for width, size in _plane_bytes(count, bits):
        part = (packed[start : start + size] >> _shifts(width, packed)).flatten()[:count].bitwise_and_(2**width - 1)
        codes = codes.bitwise_or_(part.bitwise_left_shift_(shift)) if shift else part
        start, shift = start + size, shift + width
    return codes


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Compute ``s (q - z)``, equation (16), in the type of ``scale``. codes: (out, in), scale and zero_point: (out,).

    >>> one = torch.ones(1)
    >>> dequantize(torch.tensor([[0, 3]], dtype=torch.uint8), 0.5 * one, one.byte()).tolist()
    [[-0.5, 1.0]]
    """
    return codes.to(scale.dtype).sub_(zero_point[:, None]).mul_(scale[:, None])


@REPLACEMENTS.register("quantized")
class QuantizedLinear(Replacement):
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
        self.config = {"in_features": in_features, "out_features": out_features, "bits": bits, "bias": bias}
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
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def check_bits(bits: int) -> None:
    """Raise ``InputError`` unless ``bits`` is a whole number from 2 to 8."""
    if bits not in BITS:
        raise InputError(f"weights cannot be quantised to {bits!r} bits: choose 2 to 8, or 16 for a float16 file")
