"""FLAR-SVD: whitened SVD, with ranks of equal measured feature error (Thoma et al., CVPRW 2025)."""

from __future__ import annotations

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.methods.svd_llm import Whitened
from lowrank_vit.stages.allocate.equal_error import EqualError
from lowrank_vit.stages.correct.measured_curves import FEATURE, MeasuredCurves

add_recipe(
    "flar",
    units={"decomposition": Whitened()},
    allocator=EqualError(from_uniform=True),
    sense=MeasuredCurves(currency=FEATURE),
    about="whitened SVD, ranks of equal measured feature error, without the latency model (FLAR-SVD, Thoma et al.)",
)
