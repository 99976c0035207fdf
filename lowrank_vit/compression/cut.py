"""Smaller modules at the sizes of a plan, and models made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_vit.compression.case import Case
from lowrank_vit.modules.pivoted_linear import pivot
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.curves import RankPlan


def cut(case: Case, plan: RankPlan) -> dict[str, Any]:
    """Cut the units that a plan makes smaller, by name."""
    cuts = {}
    for known in case.decomposed:
        ranks = {curve.name: plan.ranks[curve.name] for curve in case.curves_by_unit[known.unit.name]}
        if any(rank is not None for rank in ranks.values()):
            with case.services.watch("fold"):
                cuts[known.unit.name] = known.cut(ranks)
    return cuts


def fold(case: Case, cuts: Mapping[str, Any]) -> nn.Module:
    """Make a copy of the model with smaller modules; they can be trained where the modules that they replace could."""
    small = copy.deepcopy(case.model)
    with case.services.watch("fold"):
        for name, each in cuts.items():
            trainable = any(parameter.requires_grad for parameter in small.get_submodule(name).parameters())
            replace_module(small, name, each.fold().requires_grad_(trainable))
    return small


def resized(case: Case, plan: RankPlan) -> nn.Module:
    """Make a model of a plan's sizes, without Z and refit: as large and as fast as the result."""
    small = fold(case, cut(case, plan))
    if pivots(case, plan):
        pivot(small)
    return small


def pivots(case: Case, plan: RankPlan) -> bool:
    """Tell whether a plan's factors are pivoted; what depends on the budget is settled in the plan."""
    return bool(case.recipe.pivoted if plan.pivoted is None else plan.pivoted)
