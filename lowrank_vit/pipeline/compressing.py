"""Compress a model to a size, or to sizes and bits chosen together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lowrank_vit.pipeline import api
from lowrank_vit.pipeline.joint import check_joint, compress_jointly
from lowrank_vit.pipeline.recipe import Recipe
from lowrank_vit.pipeline.recipes import get_recipe
from lowrank_vit.records.budgets import Budget
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError


def compress(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "best",
    reduction: float | None = None,
    *,
    budget: Mapping[str, float | str] | str | Budget | None = None,
    bits: Sequence[int] | None = None,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Compress a timm vision transformer so that the whole model loses ``reduction`` of its parameters, 0.5 by default.

    calibration: batches of images (B, C, H, W), or tuples that begin with them; labels are never read.
    budget: in place of ``reduction``, the share of a cost that remains, such as ``{"macs": 0.5}`` (``params``, ``macs``,
    ``bytes`` or ``latency``), or an amount: ``{"bytes": "6MiB"}``, ``{"latency": "12ms"}``.
    bits: numbers of bits, 2 to 8, of which every layer gets one, chosen together with the sizes under a budget in bytes;
    the model comes out quantised.
    options: those of ``analyse``. Returns the compressed model, on the device that was used, and its report.
    Raises ``InputError`` with one line for anything that cannot be done. ``sweep`` makes several sizes at little more cost.
    """
    if bits is None:
        return api.compress(model, calibration, recipe, reduction, budget=budget, **options)
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if budget is None or reduction is not None:
        raise InputError("sizes and bits are chosen together in bytes: give a budget such as bytes=4MiB alone")
    check_joint(recipe, budget, bits)
    return compress_jointly(api.analyse(model, calibration, recipe, **options), budget, bits)
