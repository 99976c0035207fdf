"""What every size of a model would cost, from one analysis, without compressing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.budgets import REMOVED, Size, budget_of
from lowrank_vit.records.costs import COSTS, PARAMETERS, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError


def outlook(analysis: Analysis, sizes: Sequence[Size], cost: str = PARAMETERS) -> dict[str, Any]:
    """Predict what reductions of a model's ``cost``, or budgets, would lose and cost.

    The losses are those known before a plan is made: predicted ones, or the recipe's measured curves.
    Returns the ``dense`` costs, the ``currency`` of the losses, and ``sizes``: each with its ``reduction`` or ``budget``,
    ``predicted_loss`` (which adds up over the units) and costs, or the ``reason`` why it is out of reach. Heads of unequal
    widths are padded when they run, to some more multiply-accumulates than said here.
    """
    predicted = replace(analysis, recipe=replace(analysis.recipe, measured=None))
    curves, dense = predicted.priced_losses, analysis.dense_cost
    start = replace(dense, parameters=parameter_count(analysis.model))
    told: list[dict[str, Any]] = []
    for size in sizes:
        budget = budget_of(size, cost)
        asked = {"reduction": budget.number} if budget.unit == REMOVED else {"budget": str(budget)}
        try:
            ranks = predicted.plan(budget).ranks
        except InputError as error:
            told.append({**asked, "reason": str(error)})
            continue
        loss = sum(curve.error(ranks[curve.name]) for curve in curves)
        told.append({**asked, "predicted_loss": loss, **_costs(curves, ranks, start)})
    recipe = analysis.recipe
    currency = recipe.objective.unit if recipe.needs_gradient else "shares of energy, summed over layers"
    currency = currency if recipe.sense is None else recipe.sense.comparison(recipe.objective).unit
    return {"cost": cost, "currency": currency, "dense": _costs(curves, {}, dense), "sizes": told}


def _costs(curves: Sequence[ErrorCurve], ranks: Mapping[str, int | None], dense: Cost) -> dict[str, int]:
    """Return the whole model's costs of all kinds with some units at given ranks; the others stay dense."""
    costs = {}
    for name in COSTS.names():
        priced = [replace(curve, price=name) for curve in curves]
        saved = sum(curve.dense_cost - curve.cost(ranks.get(curve.name)) for curve in priced)
        costs[name] = COSTS.get(name)(dense) - saved
    return costs
