"""The pipeline: calibrate, decompose, allocate, compensate, fold. The stages know nothing of each other; this file does.

``analyse`` does, once, all that does not depend on the size asked for; ``Analysis.compress`` then gives any reduction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_vit.analysis import Analysis
from lowrank_vit.blocks import BlockAnalysis, analyse_blocks, block_budget
from lowrank_vit.errors import InputError
from lowrank_vit.phases import Phases, identity
from lowrank_vit.progress import Stopwatch
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.records import Moments
from lowrank_vit.sites import BLOCK_LINEARS, call_every_layer, find_sites
from lowrank_vit.steps import (
    Batches,
    Images,
    budget_for,
    collect,
    decompose,
    error_curves,
    resolve_device,
    statistics_needed,
)


def analyse(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "exact",
    *,
    held_out: Batches | Images | None = None,
    moments: Mapping[str, Moments] | None = None,
    sites: str = BLOCK_LINEARS,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    checkpoint_dir: str | Path | None = None,
) -> Analysis | BlockAnalysis:
    """Collect the statistics that ``recipe`` needs and decompose every site; the model itself is not changed.

    ``held_out``: images that calibration does not see, for the report's error on unseen images; labels are not read.
    ``moments``: what ``calibrate`` collected on the same images before; then they are not gone through again.
    ``checkpoint_dir``: each phase ends in a file there, by which a later call for the same goes on where an interrupted
    one stood, to the same bits; remove the folder when the model is saved. Of several processes (``torch.distributed``)
    each has its share of the batches, and all get the whole result.
    Raises ``InputError`` with one line for whatever cannot be done.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    seen = calibration if isinstance(calibration, Images) else Images(calibration)
    unseen = held_out if isinstance(held_out, Images) or held_out is None else Images(held_out)
    where, watch = resolve_device(device), Stopwatch()
    model, folder = copy.deepcopy(model), None if checkpoint_dir is None else Path(checkpoint_dir)
    model = call_every_layer(model).to(where).eval()
    if recipe.halves:
        _all_blocks(sites)
        return analyse_blocks(model, seen, recipe, unseen, moments, where, seed, watch, progress, folder)
    chosen = find_sites(model, sites)
    needs = statistics_needed(recipe)
    with watch("calibrate"):
        moments = moments or collect(model, chosen, needs, seen, seed, progress)
    unseen_moments = None
    if unseen is not None:
        whole = frozenset({"input_second" if "input_second" in needs else "second"})
        with watch("held_out"):
            unseen_moments = collect(model, chosen, whole, unseen, seed, progress)
    key = identity(model, moments, asdict(recipe), seed) if folder else ""
    phases = Phases(folder, key, where)
    with watch("decompose"):
        factors = phases("decompose", lambda: decompose(model, recipe, chosen, moments, progress))
    curves = error_curves(recipe, chosen, {name: own.loss for name, own in factors.items()})
    return Analysis(
        model=model,
        recipe=recipe,
        sites=chosen,
        images=seen,
        moments=moments,
        held_out=unseen_moments,
        factors=factors,
        curves=curves,
        device=where,
        seed=seed,
        watch=watch,
        progress=progress,
        phases=phases,
        chosen=sites != BLOCK_LINEARS,
    )


def check_reduction(model: nn.Module, recipe: Recipe, reduction: float, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a reduction that no choice of ranks can reach."""
    if recipe.halves:
        _all_blocks(sites)
        block_budget(model, recipe, reduction)
    else:
        budget_for(model, recipe, find_sites(model, sites), reduction)


def _all_blocks(sites: str) -> None:
    if sites != BLOCK_LINEARS:
        raise InputError("this recipe takes whole attention modules and MLPs, all of them: leave out --sites")


def sweep(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe,
    reductions: Sequence[float],
    **options: Any,
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """``compress`` for each of several reductions, from one calibration and one decomposition: they are paid for once.

    The models are made one after the other, as they are asked for. Every reduction is checked before anything long
    begins. The stages' seconds in a report are those since the beginning of the sweep.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    for reduction in reductions:
        check_reduction(model, recipe, reduction, options.get("sites", BLOCK_LINEARS))
    analysis = analyse(model, calibration, recipe, **options)
    return (analysis.compress(reduction) for reduction in reductions)


def compress(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "exact",
    reduction: float = 0.5,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Compress a timm vision transformer so that the whole model loses ``reduction`` of its parameters.

    calibration: batches of images (B, C, H, W), or tuples that begin with them; labels are never read.
    options: those of ``analyse``. Returns the compressed model, on the device that was used, and its report.
    Raises ``InputError`` with one line for whatever cannot be done. ``sweep`` makes several sizes at little more cost.
    """
    return next(sweep(model, calibration, recipe, [reduction], **options))
