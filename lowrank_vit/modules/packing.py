"""How quantised weights are stored: codes of 1 to 8 bits packed into bytes, and the way back to numbers.

A count of bits is a sum of powers of two (7 = 4 + 2 + 1), so a code is cut into parts of these widths, lowest bits and
widest part first, and each part is packed on its own with no bit lost. A part of width w goes into
``m = ceil(count * w / 8)`` bytes: byte j holds the parts of codes j, j + m, j + 2m, ..., the first in its lowest bits.
Neighbouring codes lie in neighbouring bytes, so that unpacking is a few shifts of whole arrays.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (8, 4, 2, 1)


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
