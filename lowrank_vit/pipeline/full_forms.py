"""The full forms of methods that learn their structure: gates and weights trained on labelled images, as data.

Each is the recipe of its gates alone (``rivals.py``) that takes what ``learn`` has learnt. ``compress`` refuses it without.
"""

from __future__ import annotations

from dataclasses import replace

from lowrank_vit.pipeline import rivals
from lowrank_vit.pipeline.recipe import Recipe
from lowrank_vit.stages.allocate.equal_error import EqualError
from lowrank_vit.stages.decompose.mlp.learnt import LearntUnits
from lowrank_vit.stages.decompose.rows.learnt import LearntRows
from lowrank_vit.stages.decompose.whole_heads.learnt import LearntHeads
from lowrank_vit.stages.gradual.methods.drop_grow import DropAndGrow
from lowrank_vit.stages.gradual.methods.sparse_rows import SparseRows
from lowrank_vit.stages.gradual.methods.unit_gates import UnitAndMixerGates

GATES_ALONE = {recipe.name: recipe for recipe in rivals.RECIPES if recipe.gradual is not None}
FULL_FORMS = {
    name: replace(GATES_ALONE[gates], name=name, labelled=True, about=about)
    for name, gates, about in (
        ("vtp", "vtp-gates", "VTP's gates a1 to a4, trained with the weights on labelled images (Zhu et al.)"),
        ("wdpruning", "wdp-gates", "WDPruning's width, trained with the weights on labelled images (Yu et al.)"),
    )
}
FULL_FORMS["spvit-he"] = replace(
    GATES_ALONE["spvit-he-gates"],
    name="spvit-he",
    gradual=UnitAndMixerGates(),
    labelled=True,
    about="hidden units, and attention or a convolution, by gates trained with the weights on labelled images (He et al.)",
)
FULL_FORMS["s2vite"] = Recipe(
    name="s2vite",
    units={"whole_heads": LearntHeads(), "mlp": LearntUnits()},
    allocator=EqualError(),
    gradual=DropAndGrow(),
    labelled=True,
    about="heads and hidden units that drop and grow while the model is trained on labelled images (S2ViTE, Chen et al.)",
)
FULL_FORMS["losparse"] = Recipe(
    name="losparse",
    units={"rows": LearntRows()},
    allocator=EqualError(),
    gradual=SparseRows(),
    labelled=True,
    about="a low-rank part and rows beside it, both trained on labelled images while rows go (LoSparse, Li et al.)",
)
