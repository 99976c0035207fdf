"""Smaller modules at the sizes of a plan, models made of them, and corrections of these as a whole."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_vit.compression.case import Case
from lowrank_vit.modules.pivoted_linear import pivot
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.objectives import divergences
from lowrank_vit.records.curves import RankPlan


def cut(case: Case, plan: RankPlan) -> dict[str, Any]:
    """Cut the units that a plan makes smaller, by name."""
    cuts = {}
    for known in case.decomposed:
        ranks = {curve.name: plan.ranks[curve.name] for curve in case.curves_by_unit[known.name]}
        if any(rank is not None for rank in ranks.values()):
            with case.services.watch("fold"):
                cuts[known.name] = known.cut(ranks)
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


def correct(case: Case, small: nn.Module, ranks: Mapping[str, Any]) -> dict[str, Any]:
    """Refit outputs branch by branch, in place; return the report's entry: ridges, and the divergence on unseen images."""
    method, recipe, services = case.recipe.refit, case.recipe, case.services
    if method is None:
        return {}
    entry: dict[str, Any] = {}
    before = None if case.unseen is None else copy.deepcopy(small)
    outputs = {unit.linears[-1].name: case.moments[unit.linears[-1].name] for unit in case.units}
    sensitivities = {
        name: moments.sums["sensitive_tokens"] for name, moments in outputs.items() if moments.has("sensitive_tokens")
    }

    def refit() -> dict[str, Any]:
        ridges = method(case.model, small, sensitivities, case.images.each(), progress=services.progress)
        return {"ridges": ridges, "weights": small.state_dict()}

    with services.watch("refit"):
        fitted = services.store.keyed_by(ranks)("refit", refit)
    small.load_state_dict(fitted["weights"])
    entry["ridges"] = fitted["ridges"]
    if case.unseen is not None and before is not None:
        with services.watch("divergence"):
            models, unseen = (before, small), case.unseen.each()
            pair = divergences(recipe.objective, case.model, models, unseen, progress=services.progress)
        name = f"{recipe.objective.measures}_held_out"
        entry[f"{name}_before"], entry[name] = pair
    return {"refit": entry}
