"""Fisher-weighted SVD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("fwsvd")
@dataclass(frozen=True)
class FisherWeightedSVD:
    """Minimise ``||D (W - U V^T)||_F``, ``D^2`` the row sums of the diagonal Fisher information (Hsu et al., ICLR 2022).

    Labels are sampled from the model's own prediction, so that no labels are needed.
    """

    revision: ClassVar[int] = 1

    floor: float = 1e-8  # of the largest weight: rows that no gradient reaches still count a little

    needs: ClassVar[frozenset[str]] = frozenset({"fisher_rows"})
    currency: ClassVar[str] = "energy fraction"

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""
        fisher = moments.mean("fisher_rows")
        row_weights = fisher.clamp_min(self.floor * fisher.max()).sqrt()
        return project_output(weight, row_weights[:, None] * weight)
