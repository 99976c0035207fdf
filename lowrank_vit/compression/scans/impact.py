"""Which scans matter least: what the model loses when one of them alone is replaced, on training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.modules.surgery import exchanged
from lowrank_vit.records.images import Batches, images_in, known_labels
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.evaluate.accuracy import count_hits

Modules = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Impact:
    """Hold what replacing some scans costs: ``top1``, percentage points lost, None without labels; ``kl`` in nats."""

    top1: float | None
    kl: float


def impacts(
    model: nn.Module, variants: Mapping[str, Modules], batches: Batches, *, progress: bool = False
) -> dict[str, Impact]:
    """Measure each variant of a model: modules, by name, that replace its own.

    Where an image has no label, no accuracy is measured. Raises ``InputError`` for no images.
    """
    lost, kl, count, labelled = dict.fromkeys(variants, 0.0), dict.fromkeys(variants, 0.0), 0, True
    device = next(model.parameters()).device
    for batch in track(batches, "impact", shown=progress):
        images, labels = images_in(batch).to(device), known_labels(batch)
        labelled, count = labelled and labels is not None, count + len(images)
        with torch.inference_mode():
            dense = predict(model, images).double().log_softmax(-1)
            for name, modules in variants.items():
                with ExitStack() as stack:
                    for place, module in modules.items():
                        stack.enter_context(exchanged(model, place, module))
                    small = predict(model, images).double().log_softmax(-1)
                kl[name] += float((dense.exp() * (dense - small)).sum())
                if labels is not None:
                    answers = labels.to(device)
                    lost[name] += float(count_hits(dense, answers, 1) - count_hits(small, answers, 1))
    if not count:
        raise InputError("no images to measure the scans on: the calibration set is empty")
    return {name: Impact(100 * lost[name] / count if labelled else None, kl[name] / count) for name in variants}


def ranked(found: Mapping[str, Impact]) -> list[str]:
    """Return the names, least impact first: by accuracy, then divergence, then depth; by divergence without accuracy."""
    return sorted(found, key=lambda name: (found[name].top1 or 0.0, found[name].kl))


def most_within(
    drop: float, order: Sequence[str], measure: Callable[[Sequence[str]], Impact]
) -> tuple[list[str], Impact | None]:
    """Return the longest prefix of ``order`` that loses at most ``drop`` points, as do all shorter ones.

    ``measure``: what replacing some of them together costs. Raises ``InputError`` where there are no labels.
    """
    chosen: list[str] = []
    last: Impact | None = None
    for place in range(1, len(order) + 1):
        found = measure(order[:place])
        if found.top1 is None:
            raise InputError(
                "a drop is measured on labelled images, and some have no label: choose the number of layers"
            )
        if found.top1 > drop:
            break
        chosen, last = list(order[:place]), found
    return chosen, last
