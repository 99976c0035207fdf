"""The recipes of methods that others have published, in the form that needs calibration images alone, as data.

What each paper has beyond that is in ``docs/rivals.md``. A reduced form never has the method's bare name.
"""

from __future__ import annotations

from lowrank_vit.pipeline.recipe import Recipe
from lowrank_vit.stages.allocate.equal_error import EqualError
from lowrank_vit.stages.correct.measured_curves import FEATURE, MeasuredCurves
from lowrank_vit.stages.decompose.linear.aafm import FeatureMimicking
from lowrank_vit.stages.decompose.linear.fwsvd import FisherWeightedSVD
from lowrank_vit.stages.decompose.linear.whitened import Whitened

RECIPES = (
    Recipe(
        name="aafm",
        units={"decomposition": FeatureMimicking()},
        sense=MeasuredCurves(),
        bias_correction=True,
        about="PCA of the output, ranks by a measured sensitivity (Yu and Wu); that it is the KL is our reading",
    ),
    Recipe(
        name="flar",
        units={"decomposition": Whitened()},
        allocator=EqualError(from_uniform=True),
        sense=MeasuredCurves(currency=FEATURE),
        about="whitened SVD, ranks of equal measured feature error, without the latency model (FLAR-SVD, Thoma et al.)",
    ),
    Recipe(
        name="fwsvd_search",
        units={"decomposition": FisherWeightedSVD()},
        allocator=EqualError(),
        sense=MeasuredCurves(),
        about="fwsvd with ranks by one threshold on the measured sensitivity of each layer, as ASVD searches them",
    ),
)
