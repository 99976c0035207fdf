"""Heads by how much the loss depends on their attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.records.factors import Directions, WholeHeads
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.decompose import WHOLE_HEADS


@WHOLE_HEADS.register("salience")
@dataclass(frozen=True)
class AttentionSalience:
    """Score a head by ``|sum A * dL/dA|``, its first-order Taylor term (S2ViTE's death score, Chen et al. 2021).

    A: all its attention in an image; root mean square over images, for labels that the model draws itself: their mean is
    zero. What is lost is the share of the module's scores that is left out, so that modules compare.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"gate_fisher"})

    def __call__(self, site: AttentionSite, moments: Moments) -> WholeHeads:
        """Order the heads."""
        fisher = moments.mean("gate_fisher").unflatten(0, (-1, site.head_width)).unflatten(2, (-1, site.head_width))
        scores = fisher.sum((1, 3)).diagonal().clamp_min(0).sqrt()
        return WholeHeads(Directions.by_share(scores))
