"""The entries of a report that describe a whole model: its sizes, what stayed dense, its compensation."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lowrank_vit.architectures.linears import EXPECTED_DENSE, left_dense
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.modules.counting import (
    input_size,
    multiply_accumulates,
    parameter_count,
    saved_bytes,
    scan_accumulates,
)
from lowrank_vit.records.report import FORMAT, LeftDense, Macs, Params, Report, WeightsBytes, some
from lowrank_vit.runtime import provenance
from lowrank_vit.stages.compensate.solve import Solution

logger = logging.getLogger(__name__)


def architecture(model: nn.Module) -> str:
    """Return the model's timm name, with its tag; where timm did not make it, where it was loaded from, or its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture", config.get("source")), config.get("tag")
    return type(model).__name__ if name is None else f"{name}.{tag}" if tag else name


def model_size(model: nn.Module) -> tuple[int, int | None]:
    """Count parameters, and multiply-accumulates per image; the latter None where the image size is not known."""
    return parameter_count(model), _macs(model, input_size(model))


def _macs(model: nn.Module, size: tuple[int, ...] | None) -> int | None:
    try:
        return None if size is None else multiply_accumulates(model, size)
    except (RuntimeError, AssertionError):  # from whichever layer does not fit the size
        logger.warning("the model does not take images of %s, so its MACs are not counted", size)
        return None


def size_entries(
    dense: nn.Module, compressed: nn.Module, before: tuple[int, int | None] | None = None
) -> tuple[Params, Macs | None]:
    """Make the ``params`` and ``macs`` entries; ``macs`` is null where the size of the model's input is not known.

    ``before``: the dense model's, by ``model_size``, where it has been counted already.
    """
    params, macs = model_size(dense) if before is None else before
    after, less = parameter_count(compressed), None if macs is None else _macs(compressed, input_size(dense))
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
    unexpected = {name: count for name, count in left.items() if not re.search(EXPECTED_DENSE, f"{name}.")}
    if unexpected and not chosen:
        share = 100 * sum(unexpected.values()) / parameter_count(model)
        logger.warning(
            "left dense, being in no block of a known kind: %s (%d in all, %.1f %% of the parameters); "
            "recipes for single layers take linear ones by --sites",
            some(unexpected),
            len(unexpected),
            share,
        )
    for reason in dict.fromkeys(logits.values()):
        names = [name for name, own in logits.items() if own == reason]
        logger.warning(
            "left dense: queries and keys of %s (%d in all), as they are %s", some(names), len(names), reason
        )
    told = {"logits": dict(logits)} if logits else {}
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
