"""Nested folders: an analysis on disk, from which any size is cut later without an image.

The directions of a layer are ordered and a rank keeps the first ones, so one file holds all sizes: the dense weights,
every layer's directions up to the largest rank that saves anything, what each rank loses, and the moments that the
bias's correction, Z and the report's errors are computed from. What is read back is an ``Analysis``: the allocator and
the cut are those of ``compress``, on the same float64 numbers, so the layers are the same bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowrank_vit import storage
from lowrank_vit.allocate import ALLOCATORS
from lowrank_vit.analysis import Analysis
from lowrank_vit.blocks import BlockAnalysis
from lowrank_vit.errors import InputError
from lowrank_vit.phases import Phases
from lowrank_vit.progress import Stopwatch
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import Factors, Moments, Site
from lowrank_vit.report import plain
from lowrank_vit.seal import NESTED, check_file
from lowrank_vit.skeleton import empty_model
from lowrank_vit.steps import Images, error_curves, largest_reduction

FORMAT = 1


def check_nestable(recipe: Recipe) -> None:
    """Raise ``InputError`` for a recipe whose smaller sizes need more than ordered factors and moments: the images."""
    if recipe.refit:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: it fits its outputs anew, to images that pass through the smaller "
            "model; compress once for every size (the statistics are cached), or nest 'loss_aware'"
        )
    if recipe.halves:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: its units are fitted anew for every choice of them, so a smaller "
            "size is no part of a larger one; compress once for every size, or nest 'loss_aware'"
        )
    if recipe.compensation is not None and recipe.solver == "minibatch":
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested with solver 'minibatch', which fits Z to the images at every size: "
            "choose --solver closed_form or moments"
        )


def pack(analysis: Analysis | BlockAnalysis, report: Mapping[str, Any]) -> storage.NestedFile:
    """What a nested folder holds beside the model that ``report`` is of.

    Raises ``InputError`` for a recipe that cannot be nested, and for a model that is not what the analysis makes.
    """
    check_nestable(analysis.recipe)
    assert isinstance(analysis, Analysis)
    trained = report["protocol"] != "training-free" or "quantization" in report
    if trained or report["recipe_fields"] != asdict(analysis.recipe):
        raise InputError(
            "a nested folder holds the model that this analysis made, neither trained nor quantised: save that"
        )
    counts = {
        kind: {name: [own.images, own.tokens] for name, own in moments.items()}
        for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {}))
    }
    record = {
        "recipe": asdict(analysis.recipe),
        "sites": [asdict(site) for site in analysis.sites],
        "counts": counts,
        "layers": {name: {"ridge": own.ridge, "cap": own.cap} for name, own in analysis.factors.items()},
        "seed": analysis.seed,
        "calibration": analysis.images.record,
    }
    entry = {
        "format": FORMAT,
        "allocator": _allocator(analysis.recipe),
        "largest_reduction": int(1e4 * largest_reduction(analysis.model, analysis.curves)) / 1e4,
    }
    return storage.NestedFile(dict(_tensors(analysis)), {"format": "pt", "nested": json.dumps(record)}, entry)


def _allocator(recipe: Recipe) -> dict[str, Any]:
    """The allocator's name and its parameters."""
    return {"name": recipe.allocator, **plain(vars(ALLOCATORS.get(recipe.allocator)()))}


def _tensors(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    """Everything under names of two or three parts, ``kind|layer|statistic``."""
    for name, tensor in analysis.model.state_dict().items():
        yield f"dense|{name}", tensor
    for curve in analysis.curves:
        factors, largest = analysis.factors[curve.name], curve.ranks[-1] if curve.ranks else 0
        yield f"u|{curve.name}", factors.u[:, :largest]
        yield f"v|{curve.name}", factors.v[:, :largest]
        yield f"loss|{curve.name}", factors.loss
    for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {})):
        for name, own in moments.items():
            for statistic in _read_later(own, analysis.recipe):
                yield f"{kind}|{name}|{statistic}", own.sums[statistic]


def _read_later(moments: Moments, recipe: Recipe) -> list[str]:
    """The statistics that a cut and its report read; the larger ones of a decomposition have done their work."""
    names = ["input_sum", "input_second" if moments.has("input_second") else "output_second"]
    z = "normalised_input_second"
    return [*names, z] if recipe.compensation is not None and moments.has(z) else names


def unpack(folder: Path, device: torch.device) -> Analysis:
    """The analysis that a nested folder was saved with, on ``device``.

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
        analysis = _analysis(config, record, tensors, device)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch or save the folder again") from None
    if entry.get("allocator") != _allocator(analysis.recipe):
        raise InputError(f"{path} was made with other parameters of its allocator than this version's: compress again")
    return analysis


def _analysis(
    config: Mapping[str, Any], record: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]], device: torch.device
) -> Analysis:
    recipe, sites = Recipe(**record["recipe"]), [Site(**site) for site in record["sites"]]
    model = empty_model(config, {}).to(device)
    model.load_state_dict(tensors["dense"], strict=True)
    factors = {
        name: Factors(tensors["u"][name], tensors["v"][name], tensors["loss"][name], **record["layers"][name])
        for name in (site.name for site in sites)
    }
    moments, unseen = (_moments(tensors.get(kind, {}), record["counts"][kind]) for kind in ("seen", "unseen"))
    return Analysis(
        model=model.eval(),
        recipe=recipe,
        sites=sites,
        images=Images((), record=record["calibration"]),
        moments=moments,
        held_out=unseen or None,
        factors=factors,
        curves=error_curves(recipe, sites, tensors["loss"]),
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
