"""An analysis as plain values and named tensors, which a nested folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested.opened import Opened
from lowrank_vit.compression.nested.packing import packed
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.records.moments import Moments
from lowrank_vit.units.linear import LinearUnit


def plain_record(analysis: Analysis) -> dict[str, Any]:
    """Return all plain values. ``layers`` and ``units`` are by unit and by part, ``sites`` those of single layers."""
    counts = {
        kind: {name: [layer.images, layer.tokens] for name, layer in moments.items()}
        for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {}))
    }
    return {
        "recipe": analysis.recipe.record(),
        "sites": [asdict(unit.site) for unit in analysis.units if isinstance(unit, LinearUnit)],
        "units": {
            name: {unit: type(part).__name__ for unit, part in parts.items()} for name, parts in analysis.parts.items()
        },
        "layers": {
            unit: {name: value for name, value in flat(part).items() if not isinstance(value, Tensor)}
            for parts in analysis.parts.values()
            for unit, part in parts.items()
        },
        "sizes": [
            {"ranks": dict(size.ranks), "points": {unit: list(point) for unit, point in size.points.items()}}
            for size in (analysis.sizes if isinstance(analysis, Opened) else ())
        ],
        "counts": counts,
        "seed": analysis.services.seed,
        "calibration": analysis.images.record,
        "chosen": analysis.subject.chosen,
        "fallback": analysis.fallback,
    }


def flat(part: Any) -> dict[str, Any]:
    """Return the fields of a decomposition's result, with those of its ``units``, if it has any."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    units = values.pop("units", None)
    return values if units is None else {**values, **vars(units)}


def named_tensors(analysis: Analysis, *, exact: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors, under names ``kind|unit``, ``kind|layer|statistic`` or ``kind|INDEX|module``.

    ``exact``: as they are, in place of float32 and triangles.
    """
    for name, tensor in analysis.model.state_dict().items():
        yield f"dense|{name}", tensor
    for name, tensor in _found(analysis):
        yield name, tensor if exact else packed(name.partition("|")[0], tensor)
    outputs = {unit.linears[-1].name for unit in analysis.units if unit.report_needs()}
    for kind, moments in (("seen", analysis.moments), ("unseen", analysis.held_out or {})):
        for name in outputs & moments.keys():
            for statistic in _read_later(moments[name], analysis.recipe):
                total = moments[name].sums[statistic]
                yield f"{kind}|{name}|{statistic}", total if exact else packed(statistic, total)
    for index, size in enumerate(analysis.sizes if isinstance(analysis, Opened) else ()):
        for name, (change, shift) in size.changes.items():
            yield f"change|{index}|{name}", change
            yield f"shift|{index}|{name}", shift


def _found(analysis: Analysis) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the decompositions' results; of factors, only the directions that save anything."""
    for curve in analysis.curves:
        part = next(parts[curve.name] for parts in analysis.parts.values() if curve.name in parts)
        for field, tensor in flat(part).items():
            if isinstance(tensor, Tensor):
                largest = curve.ranks[-1] if curve.ranks else 0
                yield f"{field}|{curve.name}", tensor[:, :largest] if field in ("u", "v") else tensor


def _read_later(moments: Moments, recipe: Recipe) -> list[str]:
    """Name the statistics that a cut and its report read; the others are for the decomposition only."""
    names = ["input_sum", "input_second" if moments.has("input_second") else "output_second"]
    z = "normalised_input_second"
    return [*names, z] if recipe.compensation is not None and moments.has(z) else names
