"""An analysis from what a nested folder holds, checked: the file may be anyone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.case import Services
from lowrank_vit.compression.find import find_units
from lowrank_vit.compression.nested.opened import Opened
from lowrank_vit.compression.nested.packing import unpacked
from lowrank_vit.compression.nested.sizes import KnownSize, needs_sizes
from lowrank_vit.compression.recipe import SINGLE, Recipe, recipe_of
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.compression.rewrite import rewrite
from lowrank_vit.compression.subject import Subject
from lowrank_vit.records.factors import Directions, Factors, InputSubset, Logits
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.units.base import Settings
from lowrank_vit.units.linear import LinearUnit

Tensors = Mapping[str, Mapping[str, Tensor]]  # by kind, by the rest of the name
UNITS = ("order", "loss", "multiple")  # the fields of directions


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
    settings = Settings(recipe.bias_correction, recipe.rank_multiple, recipe.compensation)
    return [LinearUnit(Site(**site), recipe.units[SINGLE], settings) for site in sites]


def _part(kind: str, unit: str, values: Mapping[str, Any], tensors: Tensors) -> Factors | InputSubset | Logits:
    """Make what a decomposition found of a unit; ``kind``: the name of its class."""

    def tensor(field: str) -> Tensor:
        return unpacked(field, tensors[field][unit])

    if kind == Factors.__name__:
        return Factors(tensor("u"), tensor("v"), tensor("loss"), **values)
    directions = Directions(tensor("order"), tensor("loss"), values["multiple"])
    count = len(directions.order)
    if directions.order.sort().values.tolist() != list(range(count)) or len(directions.loss) != count + 1:
        raise ValueError(f"there are no directions of {unit}")
    if kind == Logits.__name__:
        return Logits(directions, tensor("query"), tensor("key"))
    if kind != InputSubset.__name__:
        raise ValueError(f"{unit} is of an unknown kind {kind!r}")
    basis = tensor("basis") if "basis" not in values else None
    return InputSubset(directions, basis, tensor("covariance"), tensor("mean"), tensor("weight"), values["ridge"])


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
