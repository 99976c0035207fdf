"""The budget of a whole model, and what it leaves for its units."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.find import Selection, select
from lowrank_vit.compression.prices import Scale, check_z, scale_of, setting_of
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.rewrite import prepared
from lowrank_vit.modules import replacement_entries
from lowrank_vit.modules.counting import input_size, parameter_count, tokens_per_image
from lowrank_vit.records.budgets import Budget, OutOfReachError, Size, budget_of
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate import least_cost


def budget_within(curves: Sequence[ErrorCurve], recipe: Recipe, budget: Budget, scale: Scale) -> int:
    """Return what all units may cost together so that the whole model keeps within ``budget``.

    Raises ``InputError`` for a budget that no choice of sizes meets, or that the dense model meets.
    """
    rest = scale.rest(curves)
    limit = budget.limit(scale.dense)
    if not rest + least_cost(curves) <= limit < scale.dense:
        raise out_of_reach(budget, recipe, rest + least_cost(curves), scale.dense)
    return int(limit) - rest


def out_of_reach(budget: Budget, recipe: Recipe, least: int, dense: int) -> OutOfReachError:
    """Return the error for a budget outside of what a recipe can make of a model."""
    name = str(budget) if str(budget).startswith("reduction") else f"budget {budget}"
    reach = budget.reach(least, dense)
    error = OutOfReachError(f"{name} is out of reach: recipe {recipe.name!r} on these layers reaches from {reach}")
    error.reach = reach
    return error


def largest_reduction(curves: Sequence[ErrorCurve], dense: nn.Module, start: nn.Module) -> float:
    """Return the share of the dense model's parameters that is removed when every unit is at its cheapest size.

    ``start``: the dense model in the form that units are cut from.
    """
    removed = sum(curve.dense_cost for curve in curves) - least_cost(curves)
    return 1 - (parameter_count(start) - removed) / parameter_count(dense)


def check_dense(model: nn.Module) -> None:
    """Raise ``InputError`` for a model that was compressed already: its factors are no layers of their own."""
    replaced = {name: model.get_submodule(name) for name in replacement_entries(model)}
    refused = [
        (name, type(each).__name__) for name, each in replaced.items() if not getattr(each, "compressible", False)
    ]
    if refused:
        name, kind = refused[0]
        raise InputError(
            f"the model has been compressed or quantised already ({name} is a {kind}): start from the dense model that it "
            "was made from"
        )


def check_budget(model: nn.Module, recipe: Recipe, size: Size, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a budget that no choice of sizes meets.

    ``size``: a reduction of the parameters, or a budget. Times are not known before they are measured.
    """
    check_dense(model)
    model = canonical(copy.deepcopy(model))
    budget = budget_of(size)
    start = prepared(model, recipe, sites)
    selection = select(start, recipe, sites)
    scale = scale_of(budget.cost, model, setting_of(model), start)
    check_z(scale, recipe.compensation)
    if scale.before_images:
        tokens = _tokens(start, selection) if scale.by_token else {}
        curves = [curve for unit in selection.units for curve in unit.curves(tokens)]
        budget_within(scale.priced(curves), selection.recipe, budget, scale)


def check_reduction(model: nn.Module, recipe: Recipe, reduction: float, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a reduction that no choice of sizes can reach."""
    check_budget(model, recipe, reduction, sites)


def _tokens(model: nn.Module, selection: Selection) -> dict[str, int]:
    """Count the tokens that every layer sees of an image."""
    size = input_size(model)
    names = [unit.linears[0].name for unit in selection.units]
    return {} if size is None else tokens_per_image(model, names, size)
