"""What a choice of the blocks that stay must have."""

from __future__ import annotations

from typing import ClassVar, Protocol

from lowrank_vit.records.factors import Directions
from lowrank_vit.runtime.registry import Registry


class BlockChoice(Protocol):
    """Define the interface of a choice of blocks."""

    needs: ClassVar[frozenset[str]]  # nothing yet

    def __call__(self, count: int) -> Directions:
        """Order ``count`` blocks, those that stay longest first."""


DEPTHS: Registry[type[BlockChoice]] = Registry("choice of blocks", "lowrank_vit.methods")
