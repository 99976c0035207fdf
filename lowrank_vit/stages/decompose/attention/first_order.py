"""Dimensions of values by how much the loss depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import VALUE, AttentionSite
from lowrank_vit.stages.decompose import ATTENTIONS, Weights


@ATTENTIONS.register("first_order")
@dataclass(frozen=True)
class FirstOrderValues:
    """Score a dimension of the values by ``|dL/da|`` of a gate a = 1 on it: VTP's gate a2 (Zhu et al. 2021), untrained.

    The input column of the output layer goes together with the dimension of the values that makes it. Root mean square
    over images, for labels that the model draws itself: the KL has no slope at the dense model. Nothing is refitted.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (frozenset(), frozenset({"gate_fisher"}))
    units: ClassVar[tuple[str, ...]] = (VALUE,)
    pools: ClassVar[bool] = False
    biases: ClassVar[bool] = True

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        """Return queries and keys as they are."""
        return Logits.whole(site.qkv.heads, site.head_width, weight)

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the dimensions of all heads; weight: (h s, n)."""
        scores = moments.mean("gate_fisher").diagonal().clamp_min(0).sqrt()
        return InputSubset.pruned(Directions.by_score(scores), weight)
