"""What every size of a model would cost, from one analysis, without compressing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowrank_vit.pipeline.analysis import Analysis
from lowrank_vit.records.costs import COSTS, PARAMETERS, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError


def outlook(analysis: Analysis, reductions: Sequence[float], cost: str = PARAMETERS) -> dict[str, Any]:
    """Say what reductions of a model's ``cost`` would lose and cost, by predicted losses alone.

    Returns the ``dense`` costs, the ``currency`` of the losses, and ``sizes``: each with its ``reduction``,
    ``predicted_loss`` (which adds up over the units) and costs, or the ``reason`` why it is out of reach. Heads of unequal
    widths are padded when they run, to some more multiply-accumulates than said here.
    """
    predicted = replace(analysis, recipe=replace(analysis.recipe, measured=None))
    curves, dense = predicted.curves, analysis.dense_cost
    sizes: list[dict[str, Any]] = []
    for reduction in reductions:
        try:
            ranks = predicted.plan(reduction, cost).ranks
        except InputError as error:
            sizes.append({"reduction": reduction, "reason": str(error)})
            continue
        loss = sum(curve.error(ranks[curve.name]) for curve in curves)
        sizes.append({"reduction": reduction, "predicted_loss": loss, **_costs(curves, ranks, dense)})
    recipe = analysis.recipe
    currency = recipe.objective.unit if recipe.needs_gradient else "shares of energy, summed over layers"
    return {"cost": cost, "currency": currency, "dense": _costs(curves, {}, dense), "sizes": sizes}


def _costs(curves: Sequence[ErrorCurve], ranks: Mapping[str, int | None], dense: Cost) -> dict[str, int]:
    """Return the whole model's costs of all kinds at the ranks of some units; the others stay dense."""
    costs = {}
    for name in COSTS.names():
        priced = [replace(curve, price=name) for curve in curves]
        saved = sum(curve.dense_cost - curve.cost(ranks.get(curve.name)) for curve in priced)
        costs[name] = COSTS.get(name)(dense) - saved
    return costs
