"""An analysis as plain values and named tensors, which a nested folder holds, and back, checked: the file may be anyone's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.case import Services
from lowrank_vit.compression.find import find_units
from lowrank_vit.compression.nested.opened import KnownSize, Opened, needs_sizes
from lowrank_vit.compression.recipe import SINGLE, Recipe, recipe_of
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.compression.subject import Subject, rewrite
from lowrank_vit.records.factors import Directions, Factors, InputSubset, Logits
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.units.base import Settings
from lowrank_vit.units.linear import LinearUnit

SYMMETRIC = ("covariance", "input_second", "output_second")
EXACT = ("loss",)  # an allocator's choice may hang on the last bit
Tensors = Mapping[str, Mapping[str, Tensor]]  # by kind, by the rest of the name
UNITS = ("order", "loss", "multiple")  # the fields of directions


def packed(name: str, tensor: Tensor) -> Tensor:
    """Return a float64 tensor of this name as a file holds it; integers stay as they are."""
    if not tensor.is_floating_point() or name in EXACT:
        return tensor
    if name in SYMMETRIC:
        rows, columns = torch.tril_indices(*tensor.shape, device=tensor.device)
        tensor = tensor[rows, columns]
    return tensor.float()


def unpacked(name: str, tensor: Tensor) -> Tensor:
    """Return the float64 tensor that ``packed`` was given, but for rounding; one that was not packed stays as it is.

    >>> unpacked("covariance", torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.double()
    if name not in SYMMETRIC or tensor.ndim != 1:
        return tensor
    side = int((2 * len(tensor) + 0.25) ** 0.5)  # of k (k + 1) / 2 entries
    lower = tensor.new_zeros(side, side)
    rows, columns = torch.tril_indices(side, side, device=tensor.device)
    lower[rows, columns] = tensor
    return lower + lower.tril(-1).T


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


PARTS: dict[str, Any] = {kind.__name__: kind for kind in (Factors, InputSubset, Logits)}


def analysis_of(empty: nn.Module, record: Mapping[str, Any], tensors: Tensors, device: torch.device) -> Analysis:
    """Make the analysis of a dense model, whose weights are read into the form that units are cut from.

    Raises ``LookupError``, ``TypeError``, ``ValueError`` or ``RuntimeError`` for what does not fit together.
    """
    recipe = recipe_of(record["recipe"])
    model = rewrite(empty, recipe)
    model.load_state_dict(tensors["dense"], strict=True)
    units = _units(model, recipe, record["sites"])
    kinds = record.get("units") or {unit.name: {unit.name: Factors.__name__} for unit in units}
    parts = {
        unit.name: {part: _part(kind, part, record["layers"][part], tensors) for part, kind in kinds[unit.name].items()}
        for unit in units
    }
    moments, unseen = (_moments(tensors.get(kind, {}), record["counts"][kind]) for kind in ("seen", "unseen"))
    known: dict[str, Any] = {
        "subject": Subject(empty, model, chosen=bool(record.get("chosen"))),
        "recipe": recipe,
        "units": units,
        "parts": parts,
        "images": Images((), record=record["calibration"]),
        "unseen": None,
        "moments": moments,
        "held_out": unseen or None,
        "services": Services(device, ResumeStore(None, "", device), record["seed"]),
        "fallback": record.get("fallback"),
    }
    analysis = Analysis(**known)
    if not needs_sizes(analysis):
        return analysis
    opened = Opened(**known, sizes=_sizes(record["sizes"], tensors))
    opened.check()
    return opened


def _units(model: nn.Module, recipe: Recipe, sites: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    """Find the units; single layers without whole modules beside them may have been chosen."""
    if set(recipe.units) != {SINGLE}:
        return find_units(model, recipe).units
    settings = Settings(
        recipe.bias_correction, recipe.rank_multiple, recipe.compensation, pivoted=recipe.pivoted is not False
    )
    return [LinearUnit(Site(**site), recipe.units[SINGLE], settings) for site in sites]


def _part(kind: str, unit: str, values: Mapping[str, Any], tensors: Tensors) -> Factors | InputSubset | Logits:
    """Make what a decomposition found of a unit; ``kind``: the name of its class."""
    if kind not in PARTS:
        raise ValueError(f"{unit} is of an unknown kind {kind!r}")
    names = {field.name for made in (PARTS[kind], Directions) for field in fields(made)} - {"units", "moments"}
    known = {name: unpacked(name, tensors[name][unit]) for name in names & tensors.keys() if unit in tensors[name]}
    found: dict[str, Any] = {**values, **known}
    if kind != Factors.__name__:
        found["units"] = directions = Directions(*(found.pop(name) for name in UNITS))
        count = len(directions.order)
        if directions.order.sort().values.tolist() != list(range(count)) or len(directions.loss) != count + 1:
            raise ValueError(f"there are no directions of {unit}")
    return PARTS[kind](**found)


def _moments(tensors: Mapping[str, Tensor], counts: Mapping[str, Sequence[int]]) -> dict[str, Moments]:
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in counts}
    for key, tensor in tensors.items():
        name, _, statistic = key.rpartition("|")
        sums[name][statistic] = unpacked(statistic, tensor)
    return {name: Moments(images, tokens, sums[name]) for name, (images, tokens) in counts.items()}


def _sizes(records: Sequence[Mapping[str, Any]], tensors: Tensors) -> list[KnownSize]:
    changes: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in records]
    for name, change in tensors.get("change", {}).items():
        index, _, module = name.partition("|")
        changes[int(index)][module] = change, tensors["shift"][name]
    return [
        KnownSize(
            record["ranks"], {unit: (int(at), float(loss)) for unit, (at, loss) in record["points"].items()}, made
        )
        for record, made in zip(records, changes, strict=True)
    ]
