"""What a choice among the inputs and the inner parts of a module together must have."""

from __future__ import annotations

from typing import ClassVar, Protocol

from lowrank_vit.records.factors import Columns
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.registry import Registry


class ColumnChoice(Protocol):
    """Define the interface of a choice of inputs and inner parts."""

    needs: ClassVar[frozenset[str]]  # of the output layer

    def __call__(self, output: Moments, first: Moments | None) -> Columns:
        """Order the parts, by the statistics of the output layer and of the first one; None where all inputs stay."""


COLUMNS: Registry[type[ColumnChoice]] = Registry("choice of columns", "lowrank_vit.methods")
