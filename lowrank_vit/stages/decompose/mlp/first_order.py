"""Hidden units by how much the loss depends on them, removed without a refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.layers import MlpSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("first_order")
@dataclass(frozen=True)
class FirstOrderUnits:
    """Score a hidden unit by ``|dL/da|`` of a gate a = 1 on it: VTP's gate a4 (Zhu et al. 2021), before it is trained.

    Root mean square over images, for labels that the model draws itself: the KL has no slope at the dense model.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"gate_fisher"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        scores = moments.mean("gate_fisher").diagonal().clamp_min(0).sqrt()
        return InputSubset.pruned(Directions.by_score(scores), weight)
