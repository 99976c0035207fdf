"""Hidden units by what trained gates have learnt, removed without a refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import MlpSite
from lowrank_vit.stages.decompose import MLPS, Weights, learnt_scores


@MLPS.register("learnt")
@dataclass(frozen=True)
class LearntUnits:
    """Score a hidden unit by its gate; the second layer's bias takes up the mean of those removed."""

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        return InputSubset.pruned(Directions.by_score(learnt_scores(moments)), weight, moments.mean("input_sum"))
