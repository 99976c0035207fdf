"""Rows by what trained gates have learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.split_rows import SplitRows, check_share
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.decompose import learnt_scores
from lowrank_vit.stages.decompose.rows import ROWS

ROUNDING = 1e-4  # of the weight's norm: what rows without S may have beside the low-rank part


@ROWS.register("learnt")
@dataclass(frozen=True)
class LearntRows:
    """Keep the rows that training has kept; the other rows are left to the low-rank part alone.

    Rows of W whose score is below 1 are rows of ``U V^T``, so that their singular vectors give it back, to rounding. Kept
    rows are what they are, however they are split; a smaller budget leaves the last of them to their low-rank part.
    Raises ``InputError`` where the others have a higher rank: they were trained with another ``share``.
    """

    revision: ClassVar[int] = 1

    share: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        """Split ``weight``, (n, d)."""
        scores = learnt_scores(moments, "learnt_outputs")
        others = scores < 1
        low = weight[:, others] if others.any() else weight
        u = torch.linalg.svd(low, full_matrices=low.shape[1] < rank)[0][:, :rank]
        v = (u.T @ weight).T
        if others.any() and torch.dist(low, u @ v[others].T) > ROUNDING * weight.norm():
            raise InputError(
                f"rows were learnt beside a low-rank part of another share than {self.share:g}: "
                "give rows.share and gradual.share the same value"
            )
        return SplitRows(u, v, Directions.by_score(scores))
