"""The budget that a reduction of the whole model leaves for its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.modules import replacement_entries
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.pipeline.recipe import Recipe
from lowrank_vit.pipeline.selecting import select
from lowrank_vit.records.costs import COSTS, PARAMETERS, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate import least_cost


def priced(curves: Sequence[ErrorCurve], cost: str) -> list[ErrorCurve]:
    """Return the curves with their costs in ``cost``. Raises ``InputError`` for an unknown cost."""
    COSTS.get(cost)
    return [curve if curve.price == cost else replace(curve, price=cost) for curve in curves]


def budget_within(
    curves: Sequence[ErrorCurve], recipe: Recipe, reduction: float, dense: Cost, cost: str = PARAMETERS
) -> int:
    """Return the budget of all units after the whole model, which costs ``dense``, loses the share ``reduction``.

    Raises ``InputError`` for a reduction that no choice of sizes can reach.
    """
    curves, whole = priced(curves, cost), COSTS.get(cost)(dense)
    removable = sum(curve.dense_cost for curve in curves) - least_cost(curves)
    largest = removable / whole
    if not 0 < reduction <= largest:
        raise InputError(
            f"reduction {reduction:g} is out of reach: recipe {recipe.name!r} on these layers "
            f"reaches from 0 (not included) to {int(largest * 1e4) / 1e4:g}"
        )
    return int(whole * (1 - reduction)) - (whole - sum(curve.dense_cost for curve in curves))


def largest_reduction(curves: Sequence[ErrorCurve], dense: Cost) -> float:
    """Return the share of all parameters that is removed when every unit is at its cheapest size."""
    return (sum(curve.dense_cost for curve in curves) - least_cost(curves)) / dense.parameters


def check_dense(model: nn.Module) -> None:
    """Raise ``InputError`` for a model that was compressed already: its factors are no layers of their own."""
    entries = replacement_entries(model)
    if entries:
        name, kind = next((name, type(model.get_submodule(name)).__name__) for name in entries)
        raise InputError(
            f"the model has been compressed or quantised already ({name} is a {kind}): start from the dense model that it "
            "was made from"
        )


def check_reduction(model: nn.Module, recipe: Recipe, reduction: float, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a reduction that no choice of sizes can reach."""
    check_dense(model)
    selection = select(model, recipe, sites)
    curves = [curve for group in selection.groups for curve in group.blank_curves()]
    budget_within(curves, selection.recipe, reduction, Cost(parameter_count(model)))
