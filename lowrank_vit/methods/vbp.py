"""VBP: variance-based pruning of hidden units (ICCV 2025), before its distillation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import MlpSite
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("variance")
@dataclass(frozen=True)
class Variance:
    """Score a hidden unit by the variance of its activation; fc2's bias takes up the mean of those removed.

    Variance-based pruning (VBP, ICCV 2025), whose threshold is one for all layers.
    """

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        mean = moments.mean("input_sum")
        variance = moments.mean("input_second").diagonal() - mean.square()
        return InputSubset.pruned(Directions.by_score(variance.clamp_min(0)), weight, mean)


add_recipe(
    "vbp",
    units={"mlp": Variance()},
    allocator=EqualError(),
    about="hidden units of least variance removed, their mean into the bias: VBP before its distillation",
)


look("vbp", "D", (3, 3), "green", "VBP's pruning", "before its distillation")


look("vbp, distilled", "o", (2, 2), "green", labels=("vbp's pruning, distilled",))
