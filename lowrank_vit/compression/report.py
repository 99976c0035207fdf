"""The entries of a report that describe a whole model: its sizes, what stayed dense, its compensation."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.linears import EXPECTED_DENSE, beyond_linears, left_dense, tell_beyond
from lowrank_vit.compression.case import Case
from lowrank_vit.compression.cut import pivots
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.modules.counting import input_size, macs_of, model_size, parameter_count, saved_bytes, scan_accumulates
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.report import (
    FORMAT,
    LayerEntry,
    LeftDense,
    Macs,
    Params,
    Report,
    WeightsBytes,
    overfit_entry,
    plain,
    some,
)
from lowrank_vit.runtime import provenance
from lowrank_vit.stages.compensate.solve import Solution

logger = logging.getLogger(__name__)


def architecture(model: nn.Module) -> str:
    """Return the model's timm name, with its tag; where timm did not make it, where it was loaded from, or its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture", config.get("source")), config.get("tag")
    return type(model).__name__ if name is None else f"{name}.{tag}" if tag else name


def size_entries(
    dense: nn.Module, compressed: nn.Module, before: tuple[int, int | None] | None = None
) -> tuple[Params, Macs | None]:
    """Make the ``params`` and ``macs`` entries; ``macs`` is null where the size of the model's input is not known.

    ``before``: the dense model's, by ``model_size``, where it has been counted already.
    """
    params, macs = model_size(dense) if before is None else before
    after, less = parameter_count(compressed), None if macs is None else macs_of(compressed, input_size(dense))
    sizes: Params = {"dense": params, "compressed": after, "reduction": 1 - after / params}
    if macs is None:
        return sizes, None
    entry: Macs = {"dense": macs, "compressed": less}
    scans = _scans({"dense": dense, "compressed": compressed}, input_size(dense))
    if scans["dense"]:
        entry["scans"] = scans
    return sizes, entry


def _scans(models: Mapping[str, nn.Module], size: tuple[int, ...] | None) -> dict[str, int]:
    return {name: 0 if size is None else scan_accumulates(model, size) for name, model in models.items()}


def weights_entry(dense: nn.Module, compressed: nn.Module, dtype: str) -> WeightsBytes:
    """Make the ``weights_bytes`` entry: both models as they are saved, floating values in ``dtype``, as torch names it."""
    stored: torch.dtype = getattr(torch, dtype)
    return {"dense": saved_bytes(dense, stored), "compressed": saved_bytes(compressed, stored)}


def left_dense_entry(
    model: nn.Module, compressed: Iterable[str], logits: Mapping[str, str], *, chosen: bool = False
) -> LeftDense:
    """Make the ``left_dense`` entry: layers outside ``compressed``, except the classifier and the patch embedding.

    ``logits``: why queries and keys stay dense, by the name of their module. They are logged, and so are layers that stay
    dense unexpectedly, unless the user has ``chosen`` the sites.
    """
    left = left_dense(model, compressed)
    reasons = {name: reason for name, reason in beyond_linears(model).items() if name in left}
    tell_beyond(reasons)
    expected = {name for name in left if name in reasons or re.search(EXPECTED_DENSE, f"{name}.")}
    unexpected = {name: count for name, count in left.items() if name not in expected}
    if unexpected and not chosen:
        share = 100 * sum(unexpected.values()) / parameter_count(model)
        logger.warning(
            "left dense, being in no block of a known kind: %s (%d in all, %.1f %% of the parameters); "
            "recipes for single layers take linear ones by `sites=`",
            some(unexpected),
            len(unexpected),
            share,
        )
    for reason in dict.fromkeys(logits.values()):
        names = [name for name, own in logits.items() if own == reason]
        logger.warning(
            "left dense: queries and keys of %s (%d in all), as they are %s", some(names), len(names), reason
        )
    told = {name: dict(each) for name, each in (("logits", logits), ("reasons", reasons)) if each}
    return {"layers": list(left), "params": sum(left.values()), **told}  # type: ignore[typeddict-item]


def compensation_entry(recipe: Recipe, solutions: Mapping[str, Solution]) -> dict[str, Any]:
    """Make the ``compensation`` entry: the solver, its optimiser and steps, and each layer's losses at them.

    The closed form takes no steps: ``optimizer`` and ``steps`` are null then, and there are no curves.
    """
    curves = {name: [list(point) for point in solution.curve] for name, solution in solutions.items() if solution.curve}
    steps = {name: None if recipe.solver == "closed_form" else getattr(recipe, name) for name in ("optimizer", "steps")}
    return {"solver": recipe.solver, **steps, "curves": curves}


def carried(model: nn.Module) -> dict[str, Any]:
    """Return the report's entry on scans of a model whose scans were replaced before it is compressed."""
    before = getattr(model, "compression_report", {})
    return {name: before[name] for name in ("scan",) if name in before}


def make_report(
    case: Case, plan: RankPlan, small: nn.Module, layers: list[LayerEntry], corrections: Mapping[str, Any]
) -> Report:
    """Make the report of a smaller model, and attach it to it. ``corrections``: the entries on Z and refit."""
    params, macs = size_entries(case.dense, small, case.subject.size)
    recipe, services = case.recipe, case.services
    sites = {unit.name: unit.site for unit in case.units}
    reasons = {name: getattr(site, "dense_logits", "") for name, site in sites.items()}
    logits = {name: reason for name, reason in reasons.items() if reason}
    entry = left_dense_entry(case.model, list(sites), logits, chosen=case.subject.chosen)
    report: Report = {
        "format": FORMAT,
        "model": architecture(case.model),
        "recipe": recipe.name,
        "recipe_fields": {**recipe.record(), "pivoted": pivots(case, plan)},
        "protocol": "training-free" if case.learnt is None else case.learnt.protocol,
        "params": params,
        "macs": macs,
        "weights_bytes": weights_entry(case.dense, small, case.setting.dtype),
        **({} if plan.budget is None else {"budget": plan.budget}),  # type: ignore[typeddict-item]
        "layers": layers,
        "overfit": overfit_entry(layers),
        "left_dense": entry,
        "methods": {type(method).__name__: plain(vars(method)) for method in recipe.methods},
        "measured_losses": list(plan.measured),
        "compensation": corrections["compensation"],
        **carried(case.model),  # type: ignore[typeddict-item]
        **({} if case.fallback is None else {"fallback": case.fallback}),
        **({} if case.learnt is None else {"learnt": case.learnt.described}),
        **{name: value for name, value in corrections.items() if name != "compensation"},
        "trajectory": list(plan.trajectory),
        "seconds": {stage: round(seconds, 3) for stage, seconds in services.watch.seconds.items()},
        "peak_memory_bytes": provenance.peak_memory(services.device),
        "provenance": provenance.record(services.device, services.seed, case.images.record),
    }
    small.compression_report = report  # type: ignore[assignment]  # plain data, so that save() finds it
    return report


def dense_report(model: nn.Module) -> Report:
    """Make the report of a model that was not compressed, to be quantised or saved: no recipe, no layers."""
    device = next(model.parameters()).device
    params, macs = size_entries(model, model)
    return {
        "format": FORMAT,
        "model": architecture(model),
        "recipe": None,
        "recipe_fields": {},
        "protocol": "training-free",
        "params": params,
        "macs": macs,
        "layers": [],
        "trajectory": [],
        "seconds": {},
        "peak_memory_bytes": provenance.peak_memory(device),
        "provenance": provenance.record(device, 0, None),  # nothing is drawn
    }
