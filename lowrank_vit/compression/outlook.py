"""What a compression will take, from one batch; and what every size of a model would cost, without compressing."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import length_hint
from typing import Any

import torch
from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.find import FoundUnits
from lowrank_vit.modules.counting import model_size, parameter_count
from lowrank_vit.records.budgets import REMOVED, Size, budget_of
from lowrank_vit.records.costs import COSTS, PARAMETERS, Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.runtime.progress import say
from lowrank_vit.stages.calibrate.stream import calibrate

SAMPLE = 16  # images
DECOMPOSING = 2e-9  # seconds for a unit of a unit's work; DeiT-Tiny by `best` on one CPU core
PASSES_OF_REFIT = 4  # through either model, and the products
FLOAT64 = 8  # bytes


def estimate(
    model: nn.Module, found: FoundUnits, seen: Images, unseen: Images | None, seed: int
) -> tuple[float, int] | None:
    """Return about how many seconds and bytes of memory a compression takes; None where that cannot be told.

    It calibrates on a few images of the first batch: not on images that can be gone through only once, or of several
    processes.
    """
    counts = [0 if images is None else length_hint(images.batches) for images in (seen, unseen)]
    if isinstance(seen.batches, Iterator) or not counts[0] or rank_and_world()[1] > 1:
        return None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(seen.each()))
    few, recipe, units = batch[: min(SAMPLE, -(-counts[0] * len(batch) // 4))], found.recipe, found.units
    device = next(model.parameters()).device
    held = provenance.peak_memory(device)
    start = time.perf_counter()
    with torch.inference_mode():
        model(few.to(device))
    forward = (time.perf_counter() - start) / len(few)
    start = time.perf_counter()
    sites = [site for unit in units for site in unit.linears]
    needs = {name: names for unit in units for name, names in unit.needs().items()}
    objective = recipe.objective.fitted(model, [few]) if recipe.needs_objective else recipe.objective
    moments = calibrate(model, sites, needs, [few], seed=seed, objective=objective, device=device)
    calibrated = (time.perf_counter() - start) / len(few)
    images = [count * len(batch) for count in counts]
    rounds = [(recipe.measured.rounds, recipe.measured.images)] if recipe.measured is not None else []
    rounds += [(recipe.sense.points, recipe.sense.images)] if recipe.sense is not None else []
    alone = sum(passes * min(images[0], measured) for passes, measured in rounds) * len(units)
    refitted = PASSES_OF_REFIT * images[0] + 3 * images[1] if recipe.refit is not None else 0
    searched = recipe.search.passes(images[0]) if recipe.search is not None else 0
    seconds = images[0] * calibrated + (2 * images[1] + alone + refitted + searched) * forward
    seconds += DECOMPOSING * sum(unit.work for unit in units)
    sums = sum(total.nbytes for layer in moments.values() for total in layer.sums.values())
    parts = FLOAT64 * 3 * sum(max(site.parameters, site.full_rank**2) for site in sites)
    streams = _stream_bytes(sites, moments, images[0]) if recipe.refit is not None else 0
    peak = provenance.peak_memory(device)
    activations = round((peak - held) * len(batch) / len(few))  # of a whole batch, with what their gradients keep
    return seconds, held + activations + sums + parts + streams


def _stream_bytes(sites: Sequence[Site], moments: Mapping[str, Moments], images: int) -> int:
    """Return what the refit keeps: both streams, and the inputs of one output layer, in float32."""
    widest = max((site.in_features + 2 * site.out_features for site in sites), default=0)
    tokens = max(layer.tokens // layer.images for layer in moments.values())
    return 4 * images * tokens * widest


def tell(estimated: tuple[float, int] | None, *, cached: bool) -> None:
    """Print an estimate in one line on the error stream; ``cached``: whether statistics are."""
    if estimated is not None:
        seconds, memory = estimated
        length = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        where = f"; statistics are cached in {cache_folder()}, which may be deleted at any time" if cached else ""
        say(f"estimate from one batch: about {length}, {memory / 2**30:.1f} GiB of memory{where}")


def outlook(analysis: Analysis, sizes: Sequence[Size], cost: str = PARAMETERS) -> dict[str, Any]:
    """Predict what reductions of a model's ``cost``, or budgets, would lose and cost.

    The losses are those known before a plan is made: predicted ones, or the recipe's measured curves.
    Returns the ``dense`` costs, the ``currency`` of the losses, and ``sizes``: each with its ``reduction`` or ``budget``,
    ``predicted_loss`` (which adds up over the units) and costs, or the ``reason`` why it is out of reach.
    """
    predicted = replace(analysis, recipe=replace(analysis.recipe, measured=None))
    curves, dense = predicted.priced_losses, analysis.dense_cost
    start = replace(dense, parameters=parameter_count(analysis.model))
    told: list[dict[str, Any]] = []
    for size in sizes:
        budget = budget_of(size, cost)
        asked = {"reduction": budget.number} if budget.unit == REMOVED else {"budget": str(budget)}
        try:
            plan = predicted.plan(budget)
        except InputError as error:
            told.append({**asked, "reason": str(error)})
            continue
        loss = sum(curve.error(plan.ranks[curve.name]) for curve in curves)
        costs = _costs(curves, plan.ranks, start)
        if analysis.recipe.compensation is None:  # the resized model has no Z
            macs = model_size(predicted.resized(plan))[1]
            costs["macs"] = costs["macs"] if macs is None else macs
        told.append({**asked, "predicted_loss": loss, **costs})
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
