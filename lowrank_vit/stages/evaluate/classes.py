"""Whether the classes of some data can be those that a model predicts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from lowrank_vit.data.classes import IMAGENET_CLASSES, are_ranks
from lowrank_vit.objectives.classification import classes_of
from lowrank_vit.records.images import Batches, Unlabelled

SEEN = 0.9  # of a model's classes: numbers without names may lack the last few


def misfit(model: nn.Module, data: Any) -> str:
    """Say why the labels of ``data`` cannot be what a model predicts; nothing where they may be, or nothing is known.

    ``data``: a data module with ``num_classes``, or a loader whose data set has ``classes``, as torchvision's have.
    """
    classes, source = classes_of(model), getattr(data, "source", None)
    listed: Sequence[str] = getattr(getattr(data, "dataset", None), "classes", None) or ()
    names = [str(name) for name in listed] or list(getattr(source, "names", ()))
    present = len(listed) or getattr(data, "num_classes", None)
    if not classes or not present:
        return ""
    numbers = not names and getattr(source, "mirrors", False)  # of a table: their largest is all that is known
    if present > classes or (present < SEEN * classes if numbers else present != classes):
        what = " (no wnids of ImageNet)" if classes == IMAGENET_CLASSES and are_ranks(names) else ""
        return f"the data have {present} classes{what}, the model has {classes}: their labels are not what it predicts"
    chosen = getattr(source, "declared", False) or getattr(source, "order", None) is not None
    if classes == IMAGENET_CLASSES and are_ranks(names) and not chosen:
        return (
            f"the class names ({names[0]}, ...) are no wnids of ImageNet, so labels are their ranks: an ImageNet model "
            "predicts another order; name the folders by wnids, or give --class-order"
        )
    return ""


def tell_misfit(model: nn.Module, data: Any) -> bool:
    """Warn, once, where the labels of ``data`` are not what a model predicts; return whether that is so."""
    line = misfit(model, data)
    if line:
        warnings.warn(line, stacklevel=3)
    return bool(line)


def fitting(model: nn.Module, data: Any, batches: Batches) -> Batches:
    """Return batches of ``data``: without their labels, and a warning, where these are not what a model predicts."""
    return Unlabelled(batches) if tell_misfit(model, data) else batches
