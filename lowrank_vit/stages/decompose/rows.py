"""What a choice of the rows that stand beside a low-rank part of a linear layer must have."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from lowrank_vit.records.factors import SplitRows
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.registry import Registry


class RowChoice(Protocol):
    """Define the interface of a choice of rows."""

    needs: ClassVar[frozenset[str]]

    @property
    def share(self) -> float:
        """Return the share of the layer's parameters that its low-rank part has."""

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        """Split ``weight``, (n, d), into a part of this rank, and rows in their order."""


ROWS: Registry[type[RowChoice]] = Registry("choice of rows", "lowrank_vit.methods")
