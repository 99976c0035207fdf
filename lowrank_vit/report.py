"""The report of a compression: what was done to every layer, what it cost, where it comes from."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import cost, provenance
from lowrank_vit.compensate.solve import Solution
from lowrank_vit.fold import CutLayer
from lowrank_vit.halves import dense_linear
from lowrank_vit.metric import output_metric
from lowrank_vit.parallel import gathered
from lowrank_vit.parts import HalfSite, Kept
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import Factors, LayerReport, Moments, Site
from lowrank_vit.sites import EXPECTED_DENSE, left_dense

FORMAT = 1
logger = logging.getLogger(__name__)


def architecture(model: nn.Module) -> str:
    """The timm name that the model was made by, with its tag; the class's name where timm did not make it."""
    config = getattr(model, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture"), config.get("tag")
    return type(model).__name__ if name is None else f"{name}.{tag}" if tag else name


def z_entry(solution: Solution, least: float) -> dict[str, float | str]:
    """The ``z`` of a layer. Losses are (10) on the calibration set; ``least``: what the closed form reaches there."""
    return {
        "kind": solution.kind,
        "params": solution.parameters,
        "loss_before": solution.loss_before,
        "loss": solution.loss_after,
        "loss_closed_form": least,
    }


def compensation_entry(recipe: Recipe, solutions: Mapping[str, Solution]) -> dict[str, Any] | None:
    """The ``compensation`` entry: how Z was found, and each layer's losses on the way; None for a recipe without Z.

    The closed form takes no steps: ``steps`` is null then, and there are no curves.
    """
    if recipe.compensation is None:
        return None
    return {
        "solver": recipe.solver,
        "steps": None if recipe.solver == "closed_form" else recipe.steps,
        "curves": {name: [list(point) for point in own.curve] for name, own in solutions.items() if own.curve},
    }


def z_summary(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the Z of all layers of a report add up to; None where no layer has one.

    ``overhead``: parameters of Z relative to those of the dense weights it stands beside. ``loss_before``, ``loss``:
    means over the layers of (10). ``gap``: how far the sum of the losses is above what the closed form reaches, 0.01
    for one percent; None where that leaves nothing to be above of.
    """
    found = [layer for layer in layers if layer["z"] is not None]
    if not found:
        return None
    least = sum(layer["z"]["loss_closed_form"] for layer in found)
    return {
        "kind": found[0]["z"]["kind"],
        "overhead": sum(layer["z"]["params"] for layer in found)
        / sum(layer["in_features"] * layer["out_features"] for layer in found),
        "loss_before": fmean(layer["z"]["loss_before"] for layer in found),
        "loss": fmean(layer["z"]["loss"] for layer in found),
        "gap": sum(layer["z"]["loss"] for layer in found) / least - 1 if least > 0 else None,
    }


def layer_reports(
    sites: Sequence[Site],
    layers: Mapping[str, CutLayer],
    factors: Mapping[str, Factors],
    seen: Mapping[str, float],
    unseen: Mapping[str, float] | None,
) -> list[LayerReport]:
    """One entry for every site, compressed or left dense."""
    reports = []
    for site in sites:
        layer, own = layers.get(site.name), factors[site.name]
        reports.append(
            LayerReport(
                site.name,
                site.in_features,
                site.out_features,
                None if layer is None else layer.rank,
                None if layer is None else layer.z,
                site.parameters if layer is None else layer.parameters,
                seen.get(site.name, 0.0),
                None if unseen is None else unseen.get(site.name, 0.0),
                {
                    "ridge": own.ridge,
                    "cap": own.cap,
                    # what the decomposition itself believes to have lost, before Z: compare it with relative_error
                    "objective": None if layer is None else float(own.loss[min(layer.rank, len(own.loss) - 1)]),
                },
            )
        )
    return reports


def overfit_entry(layers: Sequence[LayerReport]) -> dict[str, float] | None:
    """The ``overfit`` entry: the mean error of the reduced layers on seen and on unseen images, and the second by the first.

    ``None`` without unseen images, or where nothing was reduced or lost. A ratio near 1 means that the calibration images
    were enough for what was fitted to them.
    """
    pairs = [(own.relative_error, own.relative_error_held_out) for own in layers if own.rank is not None]
    seen = fmean(own for own, _ in pairs) if pairs else 0.0
    if seen <= 0 or any(unseen is None for _, unseen in pairs):
        return None
    unseen = fmean(unseen for _, unseen in pairs if unseen is not None)
    return {"relative_error": seen, "relative_error_held_out": unseen, "ratio": unseen / seen}


def half_report(
    site: HalfSite,
    dense: nn.Module,
    compressed: nn.Module,
    kept: Kept | None,
    moments: Sequence[Moments | None],
    rank: int | None,
    details: Mapping[str, float | int | None],
) -> LayerReport:
    """The entry of a whole attention module or MLP; ``kept`` is ``None`` where it is still the dense module.

    ``moments``: of its output layer's inputs, seen and unseen. The error is that of the deployed output layer for the
    inputs that the dense model gives it: what the values, or the hidden units, lose; not what queries and keys do.
    """
    output = site.linears[-1]
    (weight, bias), (approximation, shift) = (dense_linear(model, output) for model in (dense, compressed))
    if kept is not None:
        approximation = kept.columns @ approximation
        shift = shift - kept.offset @ approximation
    errors = [
        None if own is None else output_metric(weight, own, centred=False).relative_error(approximation, shift - bias)
        for own in moments
    ]
    assert errors[0] is not None
    whole, params = (cost.parameter_count(model.get_submodule(site.name)) for model in (dense, compressed))
    details = {"dense_params": whole, **details}
    return LayerReport(
        site.name, site.in_features, output.out_features, rank, None, params, errors[0], errors[1], details
    )


def divergences(dense: nn.Module, models: Sequence[nn.Module], batches: Iterable[Tensor]) -> list[float]:
    """The mean of ``KL(dense || model)`` over the images of all processes, in nats, for each of the models."""
    device, totals, count = next(dense.parameters()).device, [0.0] * len(models), 0
    with torch.inference_mode():
        for images in (batch.to(device) for batch in batches):
            log_p = dense(images).double().log_softmax(-1)
            for index, model in enumerate(models):
                log_q = model(images).double().log_softmax(-1)
                totals[index] += float((log_p.exp() * (log_p - log_q)).sum())
            count += len(images)
    *sums, images_seen = map(sum, zip(*gathered((*totals, count)), strict=True))
    return [total / images_seen for total in sums]


def divergence(dense: nn.Module, model: nn.Module, batches: Iterable[Tensor]) -> float:
    """``divergences`` of a single model."""
    return divergences(dense, [model], batches)[0]


def model_size(model: nn.Module) -> tuple[int, int | None]:
    """Parameters, and multiply-accumulates for an image; the latter ``None`` where the size of its input is not known."""
    return cost.parameter_count(model), _macs(model, cost.input_size(model))


def _macs(model: nn.Module, size: tuple[int, ...] | None) -> int | None:
    try:
        return None if size is None else cost.multiply_accumulates(model, size)
    except (RuntimeError, AssertionError):  # of whichever layer the size does not fit
        logger.warning("the model does not take images of %s, so that its MACs are not counted", size)
        return None


def size_report(
    dense: nn.Module, compressed: nn.Module, before: tuple[int, int | None] | None = None
) -> dict[str, Any]:
    """The ``params`` and ``macs`` entries; ``macs`` is null where the size of the model's input is not known.

    ``before``: the dense model's, by ``model_size``, where it has been counted already.
    """
    params, macs = model_size(dense) if before is None else before
    after, less = cost.parameter_count(compressed), None if macs is None else _macs(compressed, cost.input_size(dense))
    return {
        "params": {"dense": params, "compressed": after, "reduction": 1 - after / params},
        "macs": None if macs is None else {"dense": macs, "compressed": less},
    }


def left_dense_entry(model: nn.Module, compressed: Iterable[str], *, chosen: bool = False) -> dict[str, Any]:
    """The ``left_dense`` entry: layers outside ``compressed``, but the classifier and the patch embedding.

    What nobody expects to stay is said on the log, too, unless the user has ``chosen`` the sites.
    """
    found = left_dense(model, compressed)
    unexpected = {name: count for name, count in found.items() if not re.search(EXPECTED_DENSE, f"{name}.")}
    if unexpected and not chosen:
        share = 100 * sum(unexpected.values()) / cost.parameter_count(model)
        logger.warning(
            "left dense, being in no block of a known kind: %s (%d in all, %.1f %% of the parameters); "
            "recipes for single layers, as 'loss_aware', take linear ones by --sites",
            some(unexpected),
            len(unexpected),
            share,
        )
    return {"layers": list(found), "params": sum(found.values())}


def some(names: Iterable[str]) -> str:
    """The first three of the names."""
    first, *rest = [*islice(names, 4)]
    return ", ".join([first, *rest[:2], *(["..."] if len(rest) > 2 else [])])


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A method's fields as a report holds them: JSON knows no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def as_json(reports: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """The ``layers`` entry."""
    return [asdict(report) for report in reports]


def dense_report(model: nn.Module) -> dict[str, Any]:
    """The report of a model that was not compressed, so that it can be quantised and saved: no recipe, no layers."""
    device = next(model.parameters()).device
    return {
        "format": FORMAT,
        "model": architecture(model),
        "recipe": None,
        "recipe_fields": {},
        "protocol": "training-free",
        **size_report(model, model),
        "layers": [],
        "trajectory": [],
        "seconds": {},
        "peak_memory_bytes": provenance.peak_memory(device),
        "provenance": provenance.record(device, 0, None),  # nothing is drawn
    }
