"""Compress a model: subject -> units -> statistics -> decompositions -> plan -> cut -> corrections -> report.

``analyse`` does what does not depend on a size, each step in the file of its name; ``Analysis.plan`` and ``apply`` do the
rest. What each file does is listed in CONTRIBUTING.md, in the order in which they run.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.arguments import check_model, check_options
from lowrank_vit.compression.budget import check_budget, check_sizes
from lowrank_vit.compression.calibrate import calibrated
from lowrank_vit.compression.case import Services
from lowrank_vit.compression.decompose import decompose
from lowrank_vit.compression.find import announce, find_units
from lowrank_vit.compression.joint import BITS, check_joint, compress_jointly
from lowrank_vit.compression.learn import gated, target_share
from lowrank_vit.compression.outlook import estimate, tell
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import as_recipe
from lowrank_vit.compression.resume import ResumeStore, identity, tell_resumed
from lowrank_vit.compression.runtimes import mode_of
from lowrank_vit.compression.share_tokens import shared
from lowrank_vit.compression.subject import Subject
from lowrank_vit.compression.token_plan import merges
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.budgets import Budget, Size
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import isolated, resolve_device
from lowrank_vit.runtime.progress import shown_by_default
from lowrank_vit.stages.correct.output_refit import check_refit
from lowrank_vit.stages.gates.learnt_gates import LearntGates

logger = logging.getLogger(__name__)
DEFAULT_REDUCTION = 0.5


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
    options: those of ``analyse``. Returns the compressed model, on the device of the given one, and its report.
    Raises ``InputError`` with one line for anything that cannot be done. ``sweep`` makes several sizes at little more cost.
    """
    check_options(options, compress, analyse)
    if reduction is not None and budget is not None:
        raise InputError(f"reduction={reduction!r} and budget={budget!r} exclude each other: give one of them")
    if isinstance(budget, Real):
        raise InputError(
            f"`budget={budget}`: a budget names its cost, as in budget={{'params': 0.6}} (what may remain); `reduction=0.4` "
            "removes a share"
        )
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


def compress_with_fewer_tokens(
    model: nn.Module,
    calibration: Batches | Images,
    budget: Mapping[str, float | str] | str | Budget,
    recipe: str | Recipe = "best",
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Call ``compress`` with a recipe that merges tokens, too: sizes and tokens share the budget.

    Raises ``InputError`` for a model whose tokens must stay, and a budget that fewer tokens do not serve.
    """
    return compress(model, calibration, as_recipe(recipe).but(tokens=True), budget=budget, **options)


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
    if bits is not None:
        for size in reductions:
            check_joint(recipe, size, bits)
    elif recipe.gradual is not None and options.get("learnt") is None:  # gates are trained towards a size
        for size in reductions:
            check_budget(model, recipe, size, options.get("sites", BLOCK_LINEARS))
        return (
            analyse(model, images, recipe, target=target_share(model, size), **options).compress(size)
            for size in reductions
        )
    analysis = analyse(model, images, recipe, sizes=() if bits else tuple(reductions), **options)
    return (resized(analysis, size, bits) for size in reductions)


def resized(analysis: Analysis, size: Size, bits: Sequence[int] | None = None) -> tuple[nn.Module, Report]:
    """Make a model of a size from an analysis; ``bits``: those to choose from together with the sizes of its units."""
    if bits is not None:
        return compress_jointly(analysis, size, bits)
    return shared(analysis, size) if merges(analysis.model, analysis.recipe, size) else analysis.compress(size)


def for_outputs(recipe: Recipe, subject: Subject, images: Images) -> Recipe:
    """Return a recipe that keeps what the model's outputs are, where these are no scores of one class each; it is told.

    Images that come with several labels say that every output is a yes or a no; other outputs than (B, classes) are features.
    """
    outputs, further = subject.outputs or (torch.zeros(1, 2), 0)
    if further:
        logger.warning("the model returns %d outputs: the first one is kept, others as far as it goes", further + 1)
    if not isinstance(recipe.objective, Classification):
        return recipe
    if images.several_labels:
        logger.warning(
            "the images have several labels each: recipe %r keeps the probability of every label (objective 'multi_label')",
            recipe.name,
        )
        return recipe.but(objective="multi_label")
    if (outputs.ndim == 2 and outputs.shape[1] > 1) or recipe.objective.lacks(subject.dense):
        return recipe
    shape = ", ".join(map(str, outputs.shape[1:]))
    logger.warning(
        "the model returns (B, %s): recipe %r keeps it as features (objective 'features')", shape, recipe.name
    )
    return recipe.but(objective="features")


@isolated()
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
    progress: bool | None = None,
    checkpoint_dir: str | Path | None = None,
    batch_size: int = 8,
    compiled: bool = False,
    runtime: str = "torch",
    learnt: LearntGates | None = None,
    target: float = 1 - DEFAULT_REDUCTION,
    sizes: Sequence[Size] = (),
) -> Analysis:
    """Collect the statistics that ``recipe`` needs and decompose every unit; the model itself is not changed.

    What of the model ``best`` cannot take falls back to single layers, which is logged and reported (``fallback``). A
    model without a classifier is compressed by the objective ``features``.
    ``held_out``: images that calibration does not see, for the report's error on unseen images; labels are not read.
    ``moments``: what ``calibrate`` collected on the same images before, so that they need not be seen again.
    ``checkpoint_dir``: each phase ends in a file there, from which a later identical call resumes an interrupted one, bit
    by bit; remove the folder once the model is saved. Of several processes (``torch.distributed``) each has its share of
    the batches, and all get the whole result. ``batch_size``, ``runtime`` (torch, compile, onnxruntime or openvino): how
    the smaller model is to run, for a budget in time (``compiled`` is ``runtime="compile"``).
    ``learnt``: what ``learn`` returned, for a recipe that is ``labelled``; ``target``: the share of the parameters that gates
    shall leave, where they are trained here. ``progress``: None shows bars in a terminal and in a notebook. ``sizes``: those
    that will be asked for; one that is out of reach is refused before an image is seen.
    Raises ``InputError`` with one line for anything that cannot be done.
    """
    check_model(model, calibration)
    recipe, where, seen = as_recipe(recipe), resolve_device(device), Images.of(calibration)
    unseen = None if held_out is None else Images.of(held_out)
    services = Services(where, ResumeStore(None, "", where), seed, shown_by_default(progress))
    subject = Subject.of(model, recipe, sites, where, learnt)
    subject.learn_size(seen)
    recipe = for_outputs(recipe, subject, seen)
    found = find_units(subject.model, recipe, sites)
    check_sizes(subject, found, sizes)
    announce(found)
    if found.recipe.refit is not None or found.recipe.replays:
        check_refit(subject.model, seen.batches)
    if services.progress:
        tell(estimate(subject.model, found, seen, unseen, seed), cached=seen.fingerprint is not None)
    recipe, moments, of_unseen = calibrated(subject.model, found, seen, unseen, services, moments)
    if checkpoint_dir is not None:
        key = identity(subject.model, moments, recipe.record(), seed)
        services = replace(services, store=ResumeStore(Path(checkpoint_dir), key, where))
        if services.progress:
            tell_resumed(services.store)
    if recipe.gradual is not None:
        learnt, moments, services = gated(subject.model, recipe, found.units, seen, moments, learnt, target, services)
    parts = decompose(subject.model, found.units, moments, services)
    return Analysis(
        subject=subject,
        recipe=recipe,
        units=found.units,
        parts=parts,
        images=seen,
        unseen=unseen,
        moments=moments,
        held_out=of_unseen,
        services=services,
        fallback=found.fallback,
        batch_size=batch_size,
        mode=mode_of("compile" if compiled else runtime),
        learnt=learnt,
    )
