"""The recipes of methods that others have published, in the form that needs calibration images alone, as data.

What each paper has beyond that is in ``docs/rivals.md``. A reduced form never has the method's bare name.
"""

from __future__ import annotations

from lowrank_vit.compression.recipe import named
from lowrank_vit.objectives.classification import Classification
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
from lowrank_vit.stages.gates.methods.importance import ImportanceGates
from lowrank_vit.stages.gates.methods.topk import TopKGates
from lowrank_vit.stages.gates.methods.unit_gates import UnitGates
from lowrank_vit.stages.search.gates import Gates

SIGNS = Classification(sampling="signs")

RECIPES = (
    named("aafm", units={"decomposition": FeatureMimicking()}, sense=MeasuredCurves(), bias_correction=True),
    named(
        "flar",
        units={"decomposition": Whitened()},
        allocator=EqualError(from_uniform=True),
        sense=MeasuredCurves(currency=FEATURE),
    ),
    named("fwsvd_search", units={"decomposition": FisherWeightedSVD()}, allocator=EqualError(), sense=MeasuredCurves()),
    named("comcat0", units={"attention": HeadProducts(), "decomposition": PlainSVD()}, sense=MeasuredCurves()),
    named(
        "comcat_search", units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()}, search=Gates()
    ),
    named("comcat", units={"attention": HeadProducts(bias_row=True), "decomposition": PlainSVD()}, search=Gates()),
    named("ssp", units={"whole_heads": AttentionSalience(), "mlp": Magnitude()}, allocator=Uniform(), objective=SIGNS),
    named(
        "vtp-taylor",
        units={"attention": FirstOrderValues(), "mlp": FirstOrderUnits()},
        allocator=EqualError(),
        objective=SIGNS,
    ),
    named("vbp", units={"mlp": Variance()}, allocator=EqualError()),
    named("corp", units={"attention": Coordinates(), "mlp": ActiveEnergy()}, allocator=Uniform()),
    named("wd-depth", units={"depth": LastBlocks()}, allocator=EqualError(), refit=ClassifierRefit()),
    named("losparse0", units={"rows": PlatonRows()}, allocator=EqualError(), bias_correction=True, objective=SIGNS),
    named("vtp-gates", units={"columns": LearntColumns()}, allocator=EqualError(), gradual=ImportanceGates()),
    named("wdp-gates", units={"gated": LearntParts()}, allocator=EqualError(), gradual=TopKGates()),
    named("spvit-he-gates", units={"mlp": LearntUnits()}, allocator=EqualError(), gradual=UnitGates()),
)
