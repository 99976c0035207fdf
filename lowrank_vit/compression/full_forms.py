"""The full forms of methods that learn their structure: gates and weights trained on labelled images, as data.

Each is the recipe of its gates alone (``rivals.py``) that takes what ``learn`` has learnt. ``compress`` refuses it without.
"""

from __future__ import annotations

from dataclasses import replace

from lowrank_vit.compression import rivals
from lowrank_vit.compression.catalogue import ABOUT
from lowrank_vit.compression.recipe import named
from lowrank_vit.stages.allocate.equal_error import EqualError
from lowrank_vit.stages.decompose.mlp.learnt import LearntUnits
from lowrank_vit.stages.decompose.rows.learnt import LearntRows
from lowrank_vit.stages.decompose.whole_heads.learnt import LearntHeads
from lowrank_vit.stages.gates.methods.drop_grow import DropAndGrow
from lowrank_vit.stages.gates.methods.sparse_rows import SparseRows
from lowrank_vit.stages.gates.methods.unit_gates import UnitAndMixerGates

GATES_ALONE = {recipe.name: recipe for recipe in rivals.RECIPES if recipe.gradual is not None}
FULL_FORMS = {
    name: replace(GATES_ALONE[gates], name=name, labelled=True, about=ABOUT[name])
    for name, gates in (("vtp", "vtp-gates"), ("wdpruning", "wdp-gates"))
}
FULL_FORMS["spvit-he"] = replace(
    GATES_ALONE["spvit-he-gates"], name="spvit-he", gradual=UnitAndMixerGates(), labelled=True, about=ABOUT["spvit-he"]
)
FULL_FORMS["s2vite"] = named(
    "s2vite",
    units={"whole_heads": LearntHeads(), "mlp": LearntUnits()},
    allocator=EqualError(),
    gradual=DropAndGrow(),
    labelled=True,
)
FULL_FORMS["losparse"] = named(
    "losparse", units={"rows": LearntRows()}, allocator=EqualError(), gradual=SparseRows(), labelled=True
)
