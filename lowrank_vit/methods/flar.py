"""FLAR-SVD: whitened SVD, with ranks of equal measured feature error (Thoma et al., CVPRW 2025)."""

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.methods.svd_llm import Whitened
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.correct.measured_losses import FEATURE, MeasuredCurves

add_recipe(
    "flar",
    units={"decomposition": Whitened()},
    allocator=EqualError(from_uniform=True),
    sense=MeasuredCurves(currency=FEATURE),
    about="whitened SVD, ranks of equal measured feature error, without the latency model (FLAR-SVD, Thoma et al.)",
)
look(
    "flar", "X", (), "red", "FLAR-SVD, no latency model",
    "measured on a grid of 8 ranks; theirs bisects over multiples of 8",
)  # fmt: skip
PRINTED.add(
    "flar",
    tuple(
        Printed(
            "deit_b",
            method,
            params,
            top1,
            "the table of FLAR-SVD's repository (Thoma et al. 2025)",
            "training-free",
            "0",
        )
        for method, params, top1 in (
            ("SVD", "44.1M (-49%)", 61.0),
            ("SVD-LLM", "44.1M (-49%)", 70.4),
            ("ASVD", "43.9M (-49%)", 71.8),
            ("FWSVD + search", "44.0M (-49%)", 73.6),
            ("FLAR-SVD", "43.7M (-50%)", 78.4),
        )
    ),
)
