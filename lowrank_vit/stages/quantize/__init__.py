"""Fewer bits for each weight; one file for each method of rounding.

A method is a frozen dataclass, called with a weight (out, in), the bits and a name for messages. It returns codes, uint8
(out, in), and for each row a scale, float16, and a zero point, uint8: ``w ~ s (q - z)``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lowrank_vit.runtime.registry import Registry

Codes = tuple[Tensor, Tensor, Tensor]


class Quantizer(Protocol):
    """The interface of a method of rounding."""

    def __call__(self, weight: Tensor, bits: int, name: str = "the weight") -> Codes:
        """Return codes, scales and zero points. Raises ``InputError`` that begins with ``name``."""
        ...


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer", __name__)
