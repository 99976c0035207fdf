"""Hidden units by the magnitude of their weights, removed without a refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.layers import MlpSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("magnitude")
@dataclass(frozen=True)
class Magnitude:
    """Score a hidden unit by ``||row of fc1||_1 + ||column of fc2||_1`` (S2ViTE's death score, Chen et al. 2021).

    With gates both rows count. What is lost is the share of the MLP's scores that is left out.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset(),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        rows = made[0].abs().sum(0).unflatten(0, (site.rows, -1)).sum(0)
        return InputSubset.pruned(Directions.by_share(rows + weight.abs().sum(1)), weight)
