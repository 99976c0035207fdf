"""Corrections of a smaller model as a whole: outputs refitted on the inputs that it gives them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from lowrank_vit.compression.case import Case
from lowrank_vit.objectives import divergences


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
