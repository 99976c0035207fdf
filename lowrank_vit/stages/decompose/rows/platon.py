"""Rows by the sensitivity of the loss to their entries, on calibration images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.split_rows import SplitRows, check_share
from lowrank_vit.stages.decompose import project_output
from lowrank_vit.stages.decompose.rows import ROWS


@ROWS.register("platon")
@dataclass(frozen=True)
class PlatonRows:
    """Truncate the SVD of W; of ``S = W - U V^T`` keep the rows of largest mean ``|S dL/dW|`` (LoSparse, Li et al. 2023).

    The slopes are those of the dense model, image by image, where LoSparse has running means over a training, and their
    uncertainty. ``share``: of the layer's parameters, for U and V; LoSparse's 5 %.
    Raises ``InputError`` for a share out of range.
    """

    revision: ClassVar[int] = 1

    share: float = 0.05

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_abs"})

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, weight: Tensor, rank: int, moments: Moments) -> SplitRows:
        """Split ``weight``, (n, d)."""
        u, v = project_output(weight, weight).cut(rank)
        scores = ((weight - u @ v.T).abs() * moments.mean("gradient_abs")).mean(0)
        return SplitRows(u, v, Directions.by_score(scores))
