"""The part of a recipe that a model can take: its units of units, and single linear layers for what is left.

A recipe for whole modules may hold a decomposition of single layers, too: it takes what the others cannot, under the same
budget of predicted loss. What fell back, and why, is said in one line and in the report.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from lowrank_vit.architectures.base import UnknownWholeError, family_of, pool_modules, survey
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.recipe import SINGLE, Recipe
from lowrank_vit.objectives import objective_for
from lowrank_vit.records.report import Fallback, some
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.units.base import UNITS, Settings, Unit

logger = logging.getLogger(__name__)
CHOSEN_SITES = "the chosen sites are single layers"


@dataclass(frozen=True)
class FoundUnits:
    """Hold a recipe as far as a model can take it, and the units of units that it compresses, in the model's order.

    ``lacking``: why the recipe's own objective cannot be measured on the model, where it needs one.
    """

    recipe: Recipe
    units: Sequence[Unit]
    fallback: Fallback | None = None
    lacking: str = ""


def find_units(model: nn.Module, recipe: Recipe, sites: str = BLOCK_LINEARS) -> FoundUnits:
    """Find what the recipe compresses; ``sites``: which single linear layers.

    Raises ``InputError`` where the model lacks a kind of unit that the recipe needs, without a decomposition of single
    layers to fall back to, and for ``sites`` where the recipe compresses whole modules only.
    """
    asked, reasons, left = recipe, list[str](), list[str]()
    lacking = recipe.objective.lacks(model) if recipe.needs_objective else ""
    recipe = replace(recipe, objective=objective_for(model, recipe.objective))
    whole = [kind for kind in recipe.units if kind != SINGLE]
    if whole and sites != BLOCK_LINEARS:
        if SINGLE not in recipe.units:
            raise InputError("this recipe compresses all attention modules and MLPs as a whole: leave out `sites=`")
        recipe, reasons = recipe.only(SINGLE), [CHOSEN_SITES]
    units = _units(model, recipe, sites)
    reasons += _refused(model, units, recipe)
    if whole and SINGLE in recipe.units:
        recipe, unwalked = _walkable(model, recipe.only(*_kinds(units)), units)
        reasons += unwalked
        left = [slot for slot in ("sense", "measured", "refit") if unwalked and asked.method(slot)]
    if not reasons:
        return FoundUnits(recipe, units, lacking=lacking)
    singles = _singles(units)
    reason = "; ".join(dict.fromkeys(reasons))
    fallback: Fallback = {"asked": asked.name, "reason": reason, "layers": singles, "left_out": left}
    return FoundUnits(recipe, units, fallback, lacking)


def announce(found: FoundUnits) -> None:
    """Log, each in one line, the other objective that losses are measured by, and what fell back and why."""
    if found.lacking:
        name = found.recipe.record()["objective"]
        logger.warning("recipe %r by the objective %r, as the model %s", found.recipe.name, name, found.lacking)
    fallback = found.fallback
    if fallback is None:
        return
    layers, units = fallback["layers"], found.recipe.units
    method = type(units[SINGLE]).__name__ if SINGLE in units else ""
    parts = [f"{len(layers)} single layers ({some(layers)}) by {method}"] if layers else []
    parts += ["losses are not measured, outputs not refitted"] if fallback["left_out"] else []
    logger.warning("recipe %r: %s, as %s", fallback["asked"], "; ".join(parts), fallback["reason"])


def _units(model: nn.Module, recipe: Recipe, sites: str) -> list[Unit]:
    whole, partial = [kind for kind in recipe.units if kind != SINGLE], SINGLE in recipe.units
    settings = Settings(
        recipe.bias_correction,
        recipe.rank_multiple,
        recipe.compensation,
        recipe.refit is not None,
        partial,
        recipe.pivoted is not False,
    )
    units = [unit for kind in whole for unit in UNITS.get(kind).find(model, recipe.units[kind], settings, sites)]
    if partial:
        inside = tuple(f"{unit.name}." for unit in units)
        singles = UNITS.get(SINGLE).find(model, recipe.units[SINGLE], settings, sites)
        units += [unit for unit in singles if not unit.name.startswith(inside)]
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return sorted(units, key=lambda unit: order[unit.name])


def _kinds(units: Sequence[Unit]) -> list[str]:
    return [kind for kind in UNITS.names() if any(type(unit) is UNITS.get(kind) for unit in units)]


def _singles(units: Sequence[Unit]) -> list[str]:
    return [unit.name for unit in units if type(unit) is UNITS.get(SINGLE)]


def _refused(model: nn.Module, units: Sequence[Unit], recipe: Recipe) -> list[str]:
    """Return why some modules, of a kind that the recipe takes as a whole, are taken layer by layer."""
    ahead = {kind for kind in recipe.units if UNITS.get(kind).ahead}
    if set(recipe.units) - ahead == {SINGLE} or SINGLE not in recipe.units:
        return []
    found, refusals = survey(model)
    known = tuple(f"{site.name}." for site in found)
    singles = _singles(units)
    if not refusals or all(name.startswith(known) for name in singles):
        return []
    more = len(refusals) - 1
    return [next(iter(refusals.values())).reason + (f" (and {more} more like it)" if more else "")]


def _walkable(model: nn.Module, recipe: Recipe, units: Sequence[Unit]) -> tuple[Recipe, list[str]]:
    """Leave out the refit and the measured losses where the stream cannot be passed through the model's blocks."""
    if recipe.refit is None and not recipe.replays:
        return recipe, []
    known = {unit.linears[-1].name for unit in units}
    try:
        family = family_of(model)
        steps = family.steps(model)
        outputs = {f"{name}.{branch.output_name}" for name, step in steps.items() for branch in family.branches(step)}
        within = (*(f"{step}." for step in steps), *(name for name, _ in pool_modules(model)))
        inside = all(unit.name.startswith(within) or unit.ahead for unit in units)
    except UnknownWholeError as error:
        return replace(recipe, refit=None, measured=None, sense=None), [error.reason]
    if inside and outputs <= known:
        return recipe, []
    return replace(recipe, refit=None, measured=None, sense=None), ["not every output of a block is compressed"]
