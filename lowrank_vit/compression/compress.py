"""The pipeline: calibrate, decompose, allocate, compensate, fold, correct. The stages know nothing of each other.

``analyse`` does once what does not depend on the chosen size; ``Analysis.compress`` then gives any reduction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.arguments import check_model, check_options
from lowrank_vit.compression.budget import check_budget, check_dense
from lowrank_vit.compression.calibrate import collect
from lowrank_vit.compression.decompose import decompose
from lowrank_vit.compression.estimate import estimate, tell
from lowrank_vit.compression.find import announce, select
from lowrank_vit.compression.joint import BITS, check_joint, compress_jointly
from lowrank_vit.compression.learn import gates_alone, known_or, target_share, with_scores
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import as_recipe
from lowrank_vit.compression.resume import Phases, identity
from lowrank_vit.compression.rewrite import prepared
from lowrank_vit.records.budgets import Budget, Size
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.progress import Stopwatch
from lowrank_vit.stages.correct.output_refit import check_refit
from lowrank_vit.stages.gates.learning import Learnt, with_mixers
from lowrank_vit.units.base import united

DEFAULT_REDUCTION = 0.5


def analyse(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "best",
    *,
    held_out: Batches | Images | None = None,
    moments: Mapping[str, Moments] | None = None,
    sites: str = BLOCK_LINEARS,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    checkpoint_dir: str | Path | None = None,
    batch_size: int = 8,
    compiled: bool = False,
    learnt: Learnt | None = None,
    target: float = 1 - DEFAULT_REDUCTION,
) -> Analysis:
    """Collect the statistics that ``recipe`` needs and decompose every unit; the model itself is not changed.

    What of the model ``best`` cannot take falls back to single layers, which is logged and reported (``fallback``). A
    model without a classifier is compressed by the objective ``features``.
    ``held_out``: images that calibration does not see, for the report's error on unseen images; labels are not read.
    ``moments``: what ``calibrate`` collected on the same images before, so that they need not be seen again.
    ``checkpoint_dir``: each phase ends in a file there, from which a later identical call resumes an interrupted one, bit
    by bit; remove the folder once the model is saved. Of several processes (``torch.distributed``) each has its share of
    the batches, and all get the whole result. ``batch_size``, ``compiled`` (by ``torch.compile``): how the smaller model
    is to run, for a budget in time. ``learnt``: what ``learn`` returned, for a recipe that is ``labelled``; ``target``: the
    share of the parameters that gates shall leave, where they are trained here.
    Raises ``InputError`` with one line for anything that cannot be done.
    """
    check_model(model, calibration)
    recipe, seen = as_recipe(recipe), Images.of(calibration)
    unseen = None if held_out is None else Images.of(held_out)
    where, watch = resolve_device(device), Stopwatch()
    model, narrow = _widened(canonical(copy.deepcopy(model)).to(where).eval())
    check_dense(model)
    start = model if learnt is None else with_mixers(model, learnt)
    dense, model = model, prepared(start, recipe, sites)
    selection = select(model, recipe, sites)
    recipe, units = selection.recipe, selection.units
    if recipe.refit is not None or recipe.replays:
        check_refit(model, seen.batches)
    announce(selection)
    if progress:
        tell(estimate(model, selection, seen, unseen, seed))
    with watch("calibrate"):
        if recipe.needs_objective:
            recipe = replace(recipe, objective=recipe.objective.fitted(model, seen.batches))
        layers = list({site.name: site for unit in units for site in unit.linears}.values())
        needs = united(unit.needs() for unit in units)
        moments = moments or collect(model, layers, needs, seen, seed, progress, recipe.objective)
    unseen_moments = None
    if unseen is not None:
        reported = united(unit.report_needs() for unit in units)
        with watch("held_out"):
            outputs = [site for site in layers if site.name in reported]
            unseen_moments = collect(model, outputs, reported, unseen, seed, progress)
    key = identity(model, moments, recipe.record(), seed) if checkpoint_dir else ""
    phases = Phases(None if checkpoint_dir is None else Path(checkpoint_dir), key, where)
    if recipe.gradual is not None:
        with watch("learn"):
            train = partial(gates_alone, model, recipe, seen, target, phases.of(target), seed, progress)
            learnt = known_or(learnt, recipe, train)
            moments = with_scores(units, moments, learnt)
        phases = phases.of(identity(model, moments)) if checkpoint_dir else phases
    with watch("decompose"):
        parts = phases("decompose", lambda: decompose(model, units, moments, progress))
    return Analysis(
        dense=dense,
        model=model,
        recipe=recipe,
        units=units,
        parts=parts,
        images=seen,
        unseen=unseen,
        moments=moments,
        held_out=unseen_moments,
        device=where,
        seed=seed,
        watch=watch,
        progress=progress,
        phases=phases,
        chosen=sites != BLOCK_LINEARS,
        narrow=narrow,
        fallback=selection.fallback,
        batch_size=batch_size,
        compiled=compiled,
        learnt=learnt,
    )


def _widened(model: nn.Module) -> tuple[nn.Module, torch.dtype | None]:
    """Convert a model of less than 32 bits to float32, in place; return it with the type that it had."""
    dtype = next(model.parameters()).dtype
    return (model.float(), dtype) if dtype.itemsize < 4 else (model, None)


def check_size(
    model: nn.Module, recipe: Recipe, size: Size, bits: Sequence[int] | None = None, sites: str = BLOCK_LINEARS
) -> None:
    """Raise ``InputError``, before an image is seen, for a size that is known to be out of reach."""
    if bits is None:
        check_budget(model, recipe, size, sites)
    else:
        check_joint(recipe, size, bits)


def resized(analysis: Analysis, size: Size, bits: Sequence[int] | None = None) -> tuple[nn.Module, Report]:
    """Make a model of a size from an analysis; ``bits``: those to choose from together with the sizes of its units."""
    return analysis.compress(size) if bits is None else compress_jointly(analysis, size, bits)


def sweep(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe,
    reductions: Sequence[Size],
    *,
    bits: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[tuple[nn.Module, Report]]:
    """Compress to several sizes, reductions or budgets as ``compress`` takes them, from one calibration.

    The models are made one by one, as the iterator is consumed. Every size is checked before anything long begins. A
    report's seconds count from the beginning of the sweep.
    """
    check_options(options, sweep, analyse)
    check_model(model, calibration)
    recipe, images = as_recipe(recipe), Images.of(calibration)
    if isinstance(reductions, str | Mapping) or not isinstance(reductions, Iterable):
        raise InputError(f"{reductions!r} is one size, not a list: give several, such as [0.25, 0.5]")
    for size in reductions:
        check_size(model, recipe, size, bits, options.get("sites", BLOCK_LINEARS))
    if (
        recipe.gradual is not None and options.get("learnt") is None and bits is None
    ):  # gates are trained towards a size
        return (
            analyse(model, images, recipe, target=target_share(model, size), **options).compress(size)
            for size in reductions
        )
    analysis = analyse(model, images, recipe, **options)
    return (resized(analysis, size, bits) for size in reductions)


def compress(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "best",
    reduction: float | None = None,
    *,
    budget: Mapping[str, float | str] | str | Budget | None = None,
    bits: Sequence[int] | None = None,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Compress a timm vision transformer so that the whole model loses ``reduction`` of its parameters, 0.5 by default.

    calibration: batches of images (B, C, H, W), or tuples that begin with them; labels are never read.
    budget: in place of ``reduction``, the share of a cost that remains, such as ``{"macs": 0.5}`` (``params``, ``macs``,
    ``bytes`` or ``latency``), or an amount: ``{"bytes": "6MiB"}``, ``{"latency": "12ms"}``.
    bits: numbers of bits, 2 to 8, from which each layer's is chosen together with the sizes, so that the file is the most
    accurate one within a budget of bytes; give ``held_out`` images, on which both are then judged.
    options: those of ``analyse``. Returns the compressed model, on the device that was used, and its report.
    Raises ``InputError`` with one line for anything that cannot be done. ``sweep`` makes several sizes at little more cost.
    """
    check_options(options, compress, analyse)
    if reduction is not None and budget is not None:
        raise InputError(f"reduction={reduction!r} and budget={budget!r} exclude each other: give one of them")
    size: Size = DEFAULT_REDUCTION if reduction is None else reduction
    return next(sweep(model, calibration, recipe, [size if budget is None else budget], bits=bits, **options))


def compress_and_quantize(
    model: nn.Module,
    calibration: Batches | Images,
    budget: Mapping[str, float | str] | str | Budget,
    recipe: str | Recipe = "best",
    *,
    bits: Sequence[int] = BITS,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Call ``compress`` with ``bits``: this name is kept for programs that use it."""
    return compress(model, calibration, recipe, budget=budget, bits=bits, **options)
