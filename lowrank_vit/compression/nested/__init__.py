"""Nested folders: an analysis on disk, from which any size is cut later without an image.

The directions of a layer, of heads and hidden units too, are ordered, and a smaller size keeps the first ones, so one file
holds all sizes: the dense weights, what the decompositions found, and the moments for the bias correction, Z and the report's
errors. A folder is read back as an ``Analysis``: allocator and cut are those of ``compress``.

Of a recipe for single layers it holds float64 numbers, and what is opened is what ``compress`` makes bit by bit (format 1). A
recipe that measures losses or refits outputs once a size is chosen sees the images at a grid of sizes before the folder is
written; what they say is interpolated between those (``opened``). At a size of the grid that is what ``compress`` makes, up
to rounding: with whole modules a folder holds float32, and symmetric matrices as triangles (format 2).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import largest_reduction
from lowrank_vit.compression.nested.file import analysis_of, named_tensors, plain_record
from lowrank_vit.compression.nested.opened import Opened, with_sizes
from lowrank_vit.compression.recipe import SINGLE, Recipe
from lowrank_vit.records.report import Report, plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.storage import folder as storage
from lowrank_vit.storage.contents import NESTED, check_file
from lowrank_vit.storage.skeleton import check_tensors, empty_model
from lowrank_vit.units.base import Unit
from lowrank_vit.units.linear import LinearUnit

BITWISE, ROUNDED = FORMATS = (1, 2)


def _ordered(kind: str, method: Any) -> bool:
    """Tell whether a smaller size of such units keeps the first parts of a larger one, in a form that a folder holds."""
    return kind in (SINGLE, "scan", "patches", "positions") or getattr(method, "ordered", False)


def check_nestable(recipe: Recipe, units: Sequence[Unit] = ()) -> None:
    """Raise ``InputError`` for a recipe whose smaller sizes do not follow from what a folder holds.

    ``units``: those that it finds in a model, once they are known.
    """
    other = {kind: type(method).__name__ for kind, method in recipe.units.items() if not _ordered(kind, method)}
    if other or any(unit.name.endswith(".scan") for unit in units):
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: its units are fitted anew for every choice of them, so a smaller "
            "size is no part of a larger one; compress once for every size, or nest 'best'"
        )
    if recipe.sense is not None or recipe.search is not None:
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested: its losses are measured on the images, which a nested folder "
            "does not have; compress once for every size (the measured losses are cached), or nest 'loss_aware'"
        )
    if recipe.compensation is not None and recipe.solver == "minibatch":
        raise InputError(
            f"recipe {recipe.name!r} cannot be nested with solver 'minibatch', which fits Z to the images at every size: "
            'choose `solver="closed_form"` or `solver="moments"`'
        )
    if recipe.compensation is not None and (recipe.refit is not None or recipe.measured is not None):
        raise InputError(f"recipe {recipe.name!r} cannot be nested with a compensation Z: choose one without")
    single = next((unit.name for unit in units if isinstance(unit, LinearUnit) and not unit.ahead), None)
    if recipe.refit is not None and single is not None:
        raise InputError(
            f"recipe {recipe.name!r} refits {single}, which it takes as a single layer of this model: that cannot be nested; "
            "compress once for every size (the statistics are cached), or nest 'loss_aware'"
        )


def pack(analysis: Analysis, report: Report) -> storage.NestedFile:
    """Make what a nested folder holds besides the model that ``report`` describes.

    Raises ``InputError`` for a recipe that cannot be nested, and for a model that is not what the analysis makes.
    """
    check_nestable(analysis.recipe, analysis.units)
    trained = report["protocol"] != "training-free" or "quantization" in report
    if trained or report["recipe_fields"] != {
        **analysis.recipe.record(),
        "pivoted": report["recipe_fields"].get("pivoted"),
    }:
        raise InputError(
            "a nested folder holds the model that this analysis made, neither trained nor quantised: save that"
        )
    exact = set(analysis.recipe.units) == {SINGLE}
    analysis = with_sizes(analysis, report.get("budget"))
    most = largest_reduction(analysis.curves, analysis.dense, analysis.model)
    if isinstance(analysis, Opened):
        most = analysis.reduction(analysis.sizes[-1])
    entry = {
        "format": BITWISE if exact else ROUNDED,
        "allocator": _allocator(analysis.recipe),
        "largest_reduction": int(1e4 * most) / 1e4,
    }
    metadata = {"format": "pt", "nested": json.dumps(plain_record(analysis))}
    return storage.NestedFile(dict(named_tensors(analysis, exact=exact)), metadata, entry)


def _allocator(recipe: Recipe) -> dict[str, Any]:
    return {"name": recipe.record()["allocator"], **plain(vars(recipe.allocator))}


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
            f"{folder} holds one size only: compress the dense model again as a nested one, or to another size"
        )
    if entry.get("format") not in FORMATS:
        raise InputError(
            f"{path} is of format {entry.get('format')!r}, this version reads {FORMATS}: upgrade lowrank-vit"
        )
    check_file(config, path)
    try:
        record, tensors = _read(path, device)
        empty = empty_model(config, {}, dense=dense, allow_factory=allow_factory).to(device).eval()
        analysis = analysis_of(empty, record, tensors, device)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch or save the folder again") from None
    if entry.get("allocator") != _allocator(analysis.recipe):
        raise InputError(f"{path} was made with other allocator parameters than this version has: compress again")
    return analysis


def _read(path: Path, device: torch.device) -> tuple[Mapping[str, Any], Mapping[str, dict[str, Tensor]]]:
    """Read the plain record, and the tensors by kind, of names ``kind|...``; check that all values are finite."""
    tensors: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["nested"])
        for name in file.keys():  # noqa: SIM118 (not a dict)
            kind, _, rest = name.partition("|")
            tensors.setdefault(kind, {})[rest] = file.get_tensor(name).to(device).clone()  # aligned as torch aligns
    for named in tensors.values():
        check_tensors(named)
    return record, tensors
