"""Hidden units of most energy, with the second layer refitted on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lowrank_vit.linalg.elimination import covariance
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import MlpSite
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("active_energy")
@dataclass(frozen=True)
class ActiveEnergy:
    """Keep the hidden units of most energy ``E[h_j^2]`` and refit the second layer on them by ridge regression, affinely.

    The compensation of CORP (2602.05243); that its ``active_energy`` is this second moment is our reading.
    What is lost is the share of the MLP's energy that is left out.
    """

    revision: ClassVar[int] = 1

    damping: float = 1e-4  # of the mean second moment

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        mean, spread, ridge = covariance(moments, self.damping)
        units = Directions.by_share(moments.mean("input_second").diagonal())
        return replace(InputSubset.pruned(units, weight, mean), covariance=spread, ridge=ridge)
