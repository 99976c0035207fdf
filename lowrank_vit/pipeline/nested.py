"""Nested folders: an analysis on disk, from which any size is cut later without an image.

The directions of a layer are ordered and a rank keeps the first ones, so one file holds all sizes: the dense weights,
every layer's directions up to the largest rank that saves anything, the loss of each rank, and the moments for the bias
correction, Z and the report's errors. A nested folder is read back as an ``Analysis``: allocator
and cut are those of ``compress``, on the same float64 numbers, so the layers are the same bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowrank_vit.pipeline.analysis import Analysis
from lowrank_vit.pipeline.budget import largest_reduction
from lowrank_vit.pipeline.groups import Settings
from lowrank_vit.pipeline.groups.linear import LinearGroup
from lowrank_vit.pipeline.phases import Phases
from lowrank_vit.pipeline.recipe import SINGLE, Recipe, recipe_of
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.images import Images
from lowrank_vit.records.layers import Site
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import Report, plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import Stopwatch
from lowrank_vit.storage import folder as storage
from lowrank_vit.storage.checksums import NESTED, check_file
from lowrank_vit.storage.skeleton import empty_model

FORMAT = 1


def check_nestable(recipe: Recipe) -> None:
    """Raise ``InputError`` for a recipe whose smaller sizes need more than ordered factors and moments: the images."""
    if recipe.refit is not None:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: it fits its outputs anew, to images that pass through the smaller "
            "model; compress once for every size (the statistics are cached), or nest 'loss_aware'"
        )
    if set(recipe.units) != {SINGLE}:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: its units are fitted anew for every choice of them, so a smaller "
            "size is no part of a larger one; compress once for every size, or nest 'loss_aware'"
        )
    if recipe.sense is not None:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: its losses are measured on the images, which a nested folder has not; "
            "compress once for every size (the measured losses are cached), or nest 'loss_aware'"
        )
    if recipe.pivoted:
        raise InputError("pivoted factors cannot be nested: a smaller size has other pivots; leave out --pivoted")
    if recipe.compensation is not None and recipe.solver == "minibatch":
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested with solver 'minibatch', which fits Z to the images at every size: "
            "choose --solver closed_form or moments"
        )


def pack(analysis: Analysis, report: Report) -> storage.NestedFile:
    """Make what a nested folder holds besides the model that ``report`` describes.

    Raises ``InputError`` for a recipe that cannot be nested, and for a model that is not what the analysis makes.
    """
    check_nestable(analysis.recipe)
    trained = report["protocol"] != "training-free" or "quantization" in report
    if trained or report["recipe_fields"] != analysis.recipe.record():
        raise InputError(
            "a nested folder holds the model that this analysis made, neither trained nor quantised: save that"
        )
    counts = {
        kind: {name: [layer.images, layer.tokens] for name, layer in moments.items()}
        for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {}))
    }
    record = {
        "recipe": analysis.recipe.record(),
        "sites": [asdict(group.site) for group in analysis.groups],
        "counts": counts,
        "layers": {
            known.group.name: {"ridge": known.factors.ridge, "cap": known.factors.cap} for known in analysis.known
        },
        "seed": analysis.seed,
        "calibration": analysis.images.record,
    }
    entry = {
        "format": FORMAT,
        "allocator": _allocator(analysis.recipe),
        "largest_reduction": int(1e4 * largest_reduction(analysis.curves, analysis.dense_cost)) / 1e4,
    }
    return storage.NestedFile(dict(_tensors(analysis)), {"format": "pt", "nested": json.dumps(record)}, entry)


def _allocator(recipe: Recipe) -> dict[str, Any]:
    """Describe the allocator by its name and its parameters."""
    return {"name": recipe.record()["allocator"], **plain(vars(recipe.allocator))}


def _tensors(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors, under names ``kind|layer`` or ``kind|layer|statistic``."""
    for name, tensor in analysis.model.state_dict().items():
        yield f"dense|{name}", tensor
    for known in analysis.known:
        curve, factors = known.curve, known.factors
        largest = curve.ranks[-1] if curve.ranks else 0
        yield f"u|{curve.name}", factors.u[:, :largest]
        yield f"v|{curve.name}", factors.v[:, :largest]
        yield f"loss|{curve.name}", factors.loss
    for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {})):
        for name, layer in moments.items():
            for statistic in _read_later(layer, analysis.recipe):
                yield f"{kind}|{name}|{statistic}", layer.sums[statistic]


def _read_later(moments: Moments, recipe: Recipe) -> list[str]:
    """Name the statistics that a cut and its report read; the others are for the decomposition only."""
    names = ["input_sum", "input_second" if moments.has("input_second") else "output_second"]
    z = "normalised_input_second"
    return [*names, z] if recipe.compensation is not None and moments.has(z) else names


def unpack(
    folder: Path, device: torch.device, *, dense: nn.Module | None = None, allow_factory: str | None = None
) -> Analysis:
    """Read the analysis that a nested folder was saved with, onto ``device``; ``dense``, ``allow_factory``: as in ``load``.

    Raises ``InputError`` for a folder that is not nested, is broken, or is of a newer format.
    """
    config, path = storage.read_config(folder), folder / NESTED
    entry = storage.nested_entry(folder)
    if entry is None:
        raise InputError(
            f"{folder} holds one size only: compress with --nested, or save(..., nested=analysis), for others"
        )
    if entry.get("format") != FORMAT:
        raise InputError(
            f"{path} is of format {entry.get('format')!r}, this version reads {FORMAT}: upgrade lowrank-vit"
        )
    check_file(config, path)
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            record = json.loads(file.metadata()["nested"])
            tensors: dict[str, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                kind, _, rest = name.partition("|")
                tensors.setdefault(kind, {})[rest] = file.get_tensor(name).clone()  # aligned as torch aligns
        model = empty_model(config, {}, dense=dense, allow_factory=allow_factory).to(device)
        model.load_state_dict(tensors["dense"], strict=True)
        analysis = _analysis(model.eval(), record, tensors, device)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch or save the folder again") from None
    if entry.get("allocator") != _allocator(analysis.recipe):
        raise InputError(f"{path} was made with other allocator parameters than this version has: compress again")
    return analysis


def _analysis(
    model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]], device: torch.device
) -> Analysis:
    recipe, sites = recipe_of(record["recipe"]), [Site(**site) for site in record["sites"]]
    settings = Settings(recipe.bias_correction, recipe.rank_multiple, recipe.compensation)
    factors = {
        name: {name: Factors(tensors["u"][name], tensors["v"][name], tensors["loss"][name], **record["layers"][name])}
        for name in (site.name for site in sites)
    }
    moments, unseen = (_moments(tensors.get(kind, {}), record["counts"][kind]) for kind in ("seen", "unseen"))
    return Analysis(
        model=model,
        recipe=recipe,
        groups=[LinearGroup(site, recipe.units[SINGLE], settings) for site in sites],
        parts=factors,
        images=Images((), record=record["calibration"]),
        unseen=None,
        moments=moments,
        held_out=unseen or None,
        device=device,
        seed=record["seed"],
        watch=Stopwatch(),
        progress=False,
        phases=Phases(None, "", device),
    )


def _moments(tensors: Mapping[str, Tensor], counts: Mapping[str, tuple[int, int]]) -> dict[str, Moments]:
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in counts}
    for key, tensor in tensors.items():
        name, _, statistic = key.rpartition("|")
        sums[name][statistic] = tensor
    return {name: Moments(images, tokens, sums[name]) for name, (images, tokens) in counts.items()}
