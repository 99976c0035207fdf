"""ASVD: activation-aware SVD by a diagonal scaling (Yuan et al., arXiv 2312.05821)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import EqualError, Uniform
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("asvd")
@dataclass(frozen=True)
class ActivationScaledSVD:
    """Minimise ``||S (W - U V^T)||_F``, ``S_ii = E|x_i|^alpha`` (Yuan et al., arXiv 2312.05821; alpha 0.5)."""

    alpha: float = 0.5
    floor: float = 1e-8  # of the largest scale: dead inputs still count a little

    needs: ClassVar[frozenset[str]] = frozenset({"input_abs"})

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        magnitude = moments.mean("input_abs")
        scale = magnitude.clamp_min(self.floor * magnitude.max()).pow(self.alpha)
        return project_output(weight, scale[:, None] * weight)


UNITS = {"decomposition": ActivationScaledSVD()}
RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the released code: a layer's parameters, as shares of the dense one's


add_recipe("asvd", units=UNITS, allocator=Uniform(), about="SVD of the weight scaled by input magnitudes (Yuan et al.)")


add_recipe(
    "asvd_search",
    units=UNITS,
    allocator=EqualError(),
    sense=MeasuredCurves(ratios=RATIOS),
    about="asvd with ranks by one threshold on the measured sensitivity of each layer, at its ratios (Yuan et al.)",
)


look("asvd", "X", (5, 3), "pink", "ASVD, uniform", "without its search of ranks")


look("asvd_search", "X", (2, 3), "blue", "ASVD + search", "the measured KL in place of the perplexity")
