"""ASVD: activation-aware SVD by a diagonal scaling (Yuan et al., arXiv 2312.05821)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.looks import look
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.allocate.rules import Uniform
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output


@DECOMPOSITIONS.register("asvd")
@dataclass(frozen=True)
class ActivationScaledSVD:
    """Minimise ``||S (W - U V^T)||_F``, ``S_ii = E|x_i|^alpha`` (Yuan et al., arXiv 2312.05821; alpha 0.5)."""

    revision: ClassVar[int] = 1

    alpha: float = 0.5
    floor: float = 1e-8  # of the largest scale: dead inputs still count a little

    needs: ClassVar[frozenset[str]] = frozenset({"input_abs"})
    currency: ClassVar[str] = "energy fraction"

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""
        magnitude = moments.mean("input_abs")
        scale = magnitude.clamp_min(self.floor * magnitude.max()).pow(self.alpha)
        return project_output(weight, scale[:, None] * weight)


add_recipe(
    "asvd",
    units={"decomposition": ActivationScaledSVD()},
    allocator=Uniform(),
    about="SVD of the weight scaled by input magnitudes (Yuan et al.)",
)
look("asvd", "X", (5, 3), "pink", "ASVD, uniform", "without its search of ranks")
