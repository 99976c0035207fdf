"""Parts and outputs by what trained gates have learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.records.factors import GatedParts
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite, MlpSite
from lowrank_vit.stages.decompose import GATED, learnt_scores


@GATED.register("learnt")
@dataclass(frozen=True)
class LearntParts:
    """Score heads or hidden units, and outputs, by their gates; kept outputs' biases take up the mean of removed inputs."""

    revision: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, site: AttentionSite | MlpSite, moments: Moments) -> GatedParts:
        """Order the parts."""
        width = site.head_width if isinstance(site, AttentionSite) else 1
        return GatedParts.by_score(
            learnt_scores(moments)[::width], learnt_scores(moments, "learnt_outputs"), moments.mean("input_sum")
        )
