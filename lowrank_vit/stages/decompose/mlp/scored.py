"""Hidden units scored one by one and removed without a refit: by magnitude, by variance, by first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import MlpSite
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
