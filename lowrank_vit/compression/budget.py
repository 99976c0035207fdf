"""The budget of a whole model, and what it leaves for its units."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.find import FoundUnits, find_units
from lowrank_vit.compression.prices import Price, check_z, price_of, setting_of
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.subject import Subject
from lowrank_vit.compression.token_plan import merges
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.budgets import Budget, OutOfReachError, Size, budgets_of
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.allocate import least_cost
from lowrank_vit.units.base import Unit


def budget_within(curves: Sequence[ErrorCurve], recipe: Recipe, budget: Budget, price: Price) -> int:
    """Return what all units may cost together so that the whole model keeps within ``budget``.

    Raises ``InputError`` for a budget that no choice of sizes meets, or that the dense model meets.
    """
    rest = price.rest(curves)
    limit = budget.limit(price.dense)
    if not rest + least_cost(curves) <= limit < price.dense:
        raise out_of_reach(budget, recipe, rest + least_cost(curves), price.dense)
    return int(limit) - rest


def priced(
    recipe: Recipe,
    price: Price,
    curves: Sequence[ErrorCurve],
    decomposed: Sequence[Unit] = (),
    *,
    pivoted: bool | None = None,
) -> list[ErrorCurve]:
    """Return the curves in a cost; ``pivoted``: whether identities in factors are saved, None: as the recipe has it there.

    Where the recipe leaves that to the cost, the curves count on it until now.
    """
    own = price.priced(curves, decomposed)
    saves = recipe.pivots(price.cost) if pivoted is None else pivoted
    return [replace(curve, saved=()) for curve in own] if recipe.pivoted is None and not saves else own


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


def check_sizes(subject: Subject, found: FoundUnits, sizes: Iterable[Size]) -> None:
    """Raise ``InputError``, before an image is seen, for a budget that no choice of sizes meets.

    Times are not known before they are measured.
    """
    for size in sizes:
        if merges(subject.model, found.recipe, size):
            continue  # tokens reach what sizes do not
        check_size(subject, found, size)


def check_size(subject: Subject, found: FoundUnits, size: Size) -> None:
    """Raise ``InputError``, before an image is seen, for a budget that no choice of sizes meets."""
    budgets = budgets_of(size).parts
    for budget in budgets:
        price = price_of(budget.cost, subject.dense, setting_of(subject.dense, subject.narrow), subject.model)
        check_z(price, found.recipe.compensation)
        if price.before_images and (len(budgets) == 1 or budget.limit(price.dense) < price.dense):
            tokens = subject.tokens([unit.linears[0].name for unit in found.units]) if price.by_token else {}
            seen = [replace(unit, tokens=tokens.get(unit.linears[0].name, 0)) for unit in found.units]
            curves = [curve for unit in seen for curve in unit.curves()]
            budget_within(priced(found.recipe, price, curves), found.recipe, budget, price)


def check_budget(model: nn.Module, recipe: Recipe, size: Size, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a size that no choice of sizes meets.

    ``size``: a reduction of the parameters, or a budget.
    """
    subject = Subject.of(model, recipe, sites)
    check_sizes(subject, find_units(subject.model, recipe, sites), [size])


def check_reduction(model: nn.Module, recipe: Recipe, reduction: float, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a reduction that no choice of sizes can reach."""
    check_budget(model, recipe, reduction, sites)
