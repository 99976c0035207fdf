"""The recipes of methods that others have published, in the form that needs calibration images alone, as data.

What each paper has beyond that is in ``docs/rivals.md``. A reduced form never has the method's bare name.
"""

from __future__ import annotations

from lowrank_vit.objectives.classification import Classification
from lowrank_vit.pipeline.recipe import Recipe
from lowrank_vit.stages.allocate.equal_error import EqualError
from lowrank_vit.stages.allocate.uniform import Uniform
from lowrank_vit.stages.correct.classifier_refit import ClassifierRefit
from lowrank_vit.stages.correct.measured_curves import FEATURE, MeasuredCurves
from lowrank_vit.stages.decompose.attention.coordinates import Coordinates
from lowrank_vit.stages.decompose.attention.first_order import FirstOrderValues
from lowrank_vit.stages.decompose.attention.products import HeadProducts
from lowrank_vit.stages.decompose.columns.learnt import LearntColumns
from lowrank_vit.stages.decompose.depth.last import LastBlocks
from lowrank_vit.stages.decompose.gated.learnt import LearntParts
from lowrank_vit.stages.decompose.linear.aafm import FeatureMimicking
from lowrank_vit.stages.decompose.linear.fwsvd import FisherWeightedSVD
from lowrank_vit.stages.decompose.linear.svd import PlainSVD
from lowrank_vit.stages.decompose.linear.whitened import Whitened
from lowrank_vit.stages.decompose.mlp.active_energy import ActiveEnergy
from lowrank_vit.stages.decompose.mlp.learnt import LearntUnits
from lowrank_vit.stages.decompose.mlp.scored import FirstOrderUnits, Magnitude, Variance
from lowrank_vit.stages.decompose.rows.platon import PlatonRows
from lowrank_vit.stages.decompose.whole_heads.salience import AttentionSalience
from lowrank_vit.stages.gradual.methods.importance import ImportanceGates
from lowrank_vit.stages.gradual.methods.topk import TopKGates
from lowrank_vit.stages.gradual.methods.unit_gates import UnitGates
from lowrank_vit.stages.search.gates import Gates

SIGNS = Classification(sampling="signs")

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
    Recipe(
        name="comcat0",
        units={"attention": HeadProducts(), "decomposition": PlainSVD()},
        sense=MeasuredCurves(),
        about="plain SVD of head products and of the MLPs' layers, ranks by measured KL: where COMCAT begins (Xiao et al.)",
    ),
    Recipe(
        name="comcat_search",
        units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()},
        search=Gates(),
        about="plain SVD of head products and of the MLPs' layers, ranks learnt by gates: before COMCAT's training",
    ),
    Recipe(
        name="comcat",
        units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()},
        search=Gates(),
        about="plain SVD of head products and of MLPs' layers, ranks learnt by gates, to be trained further (Xiao et al.)",
    ),
    Recipe(
        name="ssp",
        units={"whole_heads": AttentionSalience(), "mlp": Magnitude()},
        allocator=Uniform(),
        objective=SIGNS,
        about="one-shot salience pruning of heads and hidden units, S2ViTE's baseline (Chen et al.)",
    ),
    Recipe(
        name="vtp-taylor",
        units={"attention": FirstOrderValues(), "mlp": FirstOrderUnits()},
        allocator=EqualError(),
        objective=SIGNS,
        about="values' dimensions and hidden units by first-order scores of VTP's gates, untrained (Zhu et al.)",
    ),
    Recipe(
        name="vbp",
        units={"mlp": Variance()},
        allocator=EqualError(),
        about="hidden units of least variance removed, their mean into the bias: VBP before its distillation",
    ),
    Recipe(
        name="corp",
        units={"attention": Coordinates(), "mlp": ActiveEnergy()},
        allocator=Uniform(),
        about="the most active dimensions of queries, keys and hidden units, the rest predicted by ridge regression (CORP)",
    ),
    Recipe(
        name="wd-depth",
        units={"depth": LastBlocks()},
        allocator=EqualError(),
        refit=ClassifierRefit(),
        about="the last blocks left out, the classifier refitted to the dense one: WDPruning's depth in closed form",
    ),
    Recipe(
        name="losparse0",
        units={"rows": PlatonRows()},
        allocator=EqualError(),
        bias_correction=True,
        objective=SIGNS,
        about="plain SVD at one small rank, and rows beside it by one threshold on their slopes: LoSparse, untrained",
    ),
    Recipe(
        name="vtp-gates",
        units={"columns": LearntColumns()},
        allocator=EqualError(),
        gradual=ImportanceGates(),
        about="VTP's gates on modules' inputs, values' dimensions and hidden units, trained alone (Zhu et al.)",
    ),
    Recipe(
        name="wdp-gates",
        units={"gated": LearntParts()},
        allocator=EqualError(),
        gradual=TopKGates(),
        about="WDPruning's scores and thresholds of heads, hidden units and outputs, trained alone (Yu et al.)",
    ),
    Recipe(
        name="spvit-he-gates",
        units={"mlp": LearntUnits()},
        allocator=EqualError(),
        gradual=UnitGates(),
        about="SPViT's gates of hidden units, drawn and pulled towards multiply-accumulates, trained alone (He et al.)",
    ),
)
