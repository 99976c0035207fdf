"""Hidden units by the variance of their activations, removed without a refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.layers import MlpSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("variance")
@dataclass(frozen=True)
class Variance:
    """Score a hidden unit by the variance of its activation; fc2's bias takes up the mean of those removed.

    Variance-based pruning (VBP, ICCV 2025), whose threshold is one for all layers.
    """

    revision: ClassVar[int] = 1
    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the hidden units; weight: (h, d)."""
        mean = moments.mean("input_sum")
        variance = moments.mean("input_second").diagonal() - mean.square()
        return InputSubset.pruned(Directions.by_score(variance.clamp_min(0)), weight, mean)
