"""The form of a model that units are cut from, which computes the same function: made once, before an image is seen."""

from __future__ import annotations

import copy

from torch import nn

from lowrank_vit.architectures.folding import fold_norms
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.units.base import UNITS


def rewrite(model: nn.Module, recipe: Recipe, sites: str = BLOCK_LINEARS) -> nn.Module:
    """Return the model that the recipe's units are cut from; a copy where it differs from the given one."""
    kinds = [UNITS.get(kind) for kind in recipe.units] if sites == BLOCK_LINEARS else []
    steps = [kind.prepare for kind in kinds if kind.ahead]
    if recipe.folded:
        steps.insert(0, fold_norms)
    if not steps:
        return model
    model = copy.deepcopy(model)
    for step in steps:
        step(model)
    return model
