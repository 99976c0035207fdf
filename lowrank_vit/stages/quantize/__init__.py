"""Fewer bits for each weight; one file for each method of rounding.

A method is a frozen dataclass, called with a weight (out, in), the bits, a name for messages, and the second moment of the
layer's inputs where it ``needs`` that. It returns codes, uint8 (out, in), and for each row a scale, float16, and a zero
point, uint8: ``w ~ s (q - z)``.
"""

from typing import ClassVar, Protocol

from torch import Tensor

from lowrank_vit.runtime.registry import Registry

Codes = tuple[Tensor, Tensor, Tensor]


class Quantizer(Protocol):
    """Define the interface of a rounding method; ``needs``: statistics of a layer's inputs, none or the second moment."""

    needs: ClassVar[frozenset[str]]

    def __call__(self, weight: Tensor, bits: int, name: str = "the weight", moment: Tensor | None = None) -> Codes:
        """Return codes, scales and zero points; ``moment``: (in, in). Raises ``InputError`` that begins with ``name``."""


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer", __name__)
