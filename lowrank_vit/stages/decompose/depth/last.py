"""Removal of the last blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lowrank_vit.records.factors import Directions
from lowrank_vit.stages.decompose.depth import DEPTHS


@DEPTHS.register("last")
@dataclass(frozen=True)
class LastBlocks:
    """Leave out the last blocks, as WDPruning does after the classifier at which it stops (Yu et al. 2022).

    What is lost is told as the share of blocks that are left out.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, count: int) -> Directions:
        """Order ``count`` blocks."""
        return Directions(torch.arange(count), torch.linspace(1, 0, count + 1, dtype=torch.float64))
