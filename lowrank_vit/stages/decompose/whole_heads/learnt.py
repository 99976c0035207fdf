"""Heads by what trained gates have learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.records.factors import Directions, WholeHeads
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.decompose import WHOLE_HEADS, learnt_scores


@WHOLE_HEADS.register("learnt")
@dataclass(frozen=True)
class LearntHeads:
    """Score a head by its gate; the output's bias takes up the mean of those removed."""

    revision: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, site: AttentionSite, moments: Moments) -> WholeHeads:
        """Order the heads."""
        scores = learnt_scores(moments)[:: site.head_width]  # all dimensions of a head have its score
        return WholeHeads(Directions.by_score(scores), moments.mean("input_sum"))
