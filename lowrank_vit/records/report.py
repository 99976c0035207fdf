"""The report of a compression: its schema, as types that files are checked against, and sums over its layers.

``report.json`` of a saved model has these entries. What only later versions write is ``NotRequired``, so that folders of
earlier ones load.
"""

# no postponed annotations here: with them, checks at run time could not see which entries are required
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any, NotRequired, TypedDict

from lowrank_vit.records.sites import HEAD, HIDDEN, PART, QUERY_KEY, VALUE

FORMAT = 1


class Params(TypedDict):
    """Report the parameters of the whole model."""

    dense: int
    compressed: int
    reduction: float


class Macs(TypedDict):
    """Report the multiply-accumulates of one image in matrix products; null where the images' size does not fit."""

    dense: int
    compressed: int | None
    scans: NotRequired[dict[str, int]]  # of recurrences, which the others do not count


class WeightsBytes(TypedDict):
    """Report the bytes of ``model.safetensors``, of the dense model and of this one."""

    dense: int
    compressed: int


class BudgetEntry(TypedDict):
    """Report what the sizes were chosen for: parameters, multiply-accumulates, bytes or nanoseconds of the whole model.

    ``predicted`` adds up the sizes' prices, ``counted`` is of the model itself: a measured time, ``where`` says how.
    ``preferred``: with the sizes that a search would have chosen by itself, which may exceed the limit. ``also``: the
    other budgets that the sizes were chosen for.
    """

    cost: str
    asked: str
    dense: int
    limit: int
    predicted: int
    counted: int
    where: dict[str, Any]
    preferred: NotRequired[int]
    also: NotRequired[list[Any]]


class ZEntry(TypedDict):
    """Report the compensation of a layer: kind, parameters, and (10) on the calibration set."""

    kind: NotRequired[str]
    params: int
    loss_before: NotRequired[float]
    loss: NotRequired[float]
    loss_closed_form: NotRequired[float]


class LayerEntry(TypedDict):
    """Report what became of one layer or module; ``relative_error`` is ``E||y - y^||^2 / E||x W||^2``."""

    name: str
    in_features: int
    out_features: int
    rank: int | None
    z: ZEntry | None
    params: int
    relative_error: float
    relative_error_held_out: float | None
    details: NotRequired[dict[str, Any]]


class Overfit(TypedDict):
    """Report the mean errors of the reduced layers on seen and on unseen images, and the second over the first."""

    relative_error: float
    relative_error_held_out: float
    ratio: float


class LeftDense(TypedDict):
    """Report the layers that were not compressed, except the classifier and the patch embedding.

    ``logits``: attention modules whose values only were, and what their queries and keys are ("normalised").
    ``reasons``: why layers of ``nn.Linear`` are no plain ones, by name.
    """

    layers: list[str]
    params: int
    reasons: NotRequired[dict[str, str]]
    logits: NotRequired[dict[str, str]]


class Fallback(TypedDict):
    """Report what a model could not take of the recipe that was ``asked`` for, and why.

    ``layers`` were compressed one by one instead; ``left_out`` are stages (``measured``, ``refit``).
    """

    asked: str
    reason: str
    layers: list[str]
    left_out: list[str]


class Quantization(TypedDict):
    """Report how the weights are stored, and the file's bytes by what they are for.

    ``method``: of rounding, with its ``hyperparameters``; ``calibration``: of the images that it has seen.
    ``left_dense``: why layers in the blocks were not rounded, by name.
    """

    bits: int
    layers: int
    relative_weight_error: float
    method: NotRequired[str]
    hyperparameters: NotRequired[dict[str, Any]]
    calibration: NotRequired[dict[str, Any] | None]
    left_dense: NotRequired[dict[str, str]]
    codes_bytes: NotRequired[int]
    scales_bytes: NotRequired[int]
    float_bytes: NotRequired[int]
    index_bytes: NotRequired[int]
    file_bytes: NotRequired[int]


class QuantizationAddition(TypedDict):
    """Hold what quantising adds to a report."""

    quantization: Quantization


class Report(TypedDict):
    """Report how a model was made, and its sizes and errors."""

    format: NotRequired[int]
    model: str
    recipe: str | None
    recipe_fields: NotRequired[dict[str, Any]]
    protocol: str
    params: Params
    macs: NotRequired[Macs | None]
    weights_bytes: NotRequired[WeightsBytes]
    budget: NotRequired[BudgetEntry]
    layers: list[LayerEntry]
    overfit: NotRequired[Overfit | None]
    left_dense: NotRequired[LeftDense | None]
    fallback: NotRequired[Fallback]
    scan: NotRequired[dict[str, Any]]
    learnt: NotRequired[dict[str, Any]]
    methods: NotRequired[dict[str, Any]]
    measured_losses: NotRequired[list[Any]]
    compensation: NotRequired[dict[str, Any] | None]
    refit: NotRequired[dict[str, Any]]
    trajectory: NotRequired[list[Any]]
    seconds: dict[str, float]
    peak_memory_bytes: NotRequired[int]
    provenance: NotRequired[dict[str, Any]]
    quantization: NotRequired[Quantization]
    finetune: NotRequired[dict[str, Any]]
    distillation: NotRequired[dict[str, Any]]
    bytes: NotRequired[dict[str, int]]


def largest_size(layer: Mapping[str, Any]) -> int:
    """Return the largest ``rank`` of an entry: hidden units, directions of values or of logits, heads, or the full rank."""
    details = layer.get("details", {})
    known = (details.get(f"{unit}_of") for unit in (HIDDEN, VALUE, QUERY_KEY, HEAD, PART))
    return next((count for count in known if count), min(layer["in_features"], layer["out_features"]))


def z_summary(layers: Sequence[LayerEntry]) -> dict[str, Any] | None:
    """Add up the Z of all layers of a report; None where no layer has one.

    ``overhead``: parameters of Z relative to those of the dense weights it stands beside. ``loss_before``, ``loss``:
    means over the layers of (10). ``gap``: how far the sum of the losses is above what the closed form reaches, 0.01
    for one percent; None if the closed form reaches zero.
    """
    compensated = [(layer, layer["z"]) for layer in layers if layer["z"] is not None]
    if not compensated:
        return None
    least = sum(z["loss_closed_form"] for _, z in compensated)
    return {
        "kind": compensated[0][1]["kind"],
        "overhead": sum(z["params"] for _, z in compensated)
        / sum(layer["in_features"] * layer["out_features"] for layer, _ in compensated),
        "loss_before": fmean(z["loss_before"] for _, z in compensated),
        "loss": fmean(z["loss"] for _, z in compensated),
        "gap": sum(z["loss"] for _, z in compensated) / least - 1 if least > 0 else None,
    }


def overfit_entry(layers: Sequence[LayerEntry]) -> Overfit | None:
    """Compute the ``overfit`` entry; None without unseen images, or where nothing was reduced or lost.

    A ratio near 1 means that the calibration images were enough for what was fitted to them.
    """
    pairs = [
        (layer["relative_error"], layer["relative_error_held_out"]) for layer in layers if layer["rank"] is not None
    ]
    seen = fmean(error for error, _ in pairs) if pairs else 0.0
    if seen <= 0 or any(unseen is None for _, unseen in pairs):
        return None
    unseen = fmean(error for _, error in pairs if error is not None)
    return {"relative_error": seen, "relative_error_held_out": unseen, "ratio": unseen / seen}


def some(names: Iterable[str]) -> str:
    """Join the first three of the names."""
    first, *rest = [*islice(names, 4)]
    return ", ".join([first, *rest[:2], *(["..."] if len(rest) > 2 else [])])


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's fields as a report holds them: JSON knows no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
