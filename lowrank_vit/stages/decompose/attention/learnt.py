"""Dimensions of values by what trained gates have learnt, removed without a refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import VALUE, AttentionSite
from lowrank_vit.stages.decompose import ATTENTIONS, Weights, learnt_scores


@ATTENTIONS.register("learnt")
@dataclass(frozen=True)
class LearntValues:
    """Score a dimension of the values by its gate; the output's bias takes up the mean of those removed."""

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (frozenset(), frozenset({"input_second"}))
    units: ClassVar[tuple[str, ...]] = (VALUE,)
    pools: ClassVar[bool] = False
    biases: ClassVar[bool] = True

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Return queries and keys as they are."""
        return Logits.whole(site.qkv.heads, site.head_width, weight)

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the dimensions of all heads; weight: (h s, n)."""
        return InputSubset.pruned(Directions.by_score(learnt_scores(moments)), weight, moments.mean("input_sum"))
