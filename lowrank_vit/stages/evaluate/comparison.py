"""A compressed model beside the dense one, on the same images: how often classifiers agree, or how far features differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.objectives.classification import Classification, without_classifier
from lowrank_vit.records.images import each_image
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.evaluate.accuracy import EMPTY, FeatureScore, check_labels, count_hits


def compare(
    dense: nn.Module, small: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], *, progress: bool = False
) -> dict[str, Any]:
    """Return ``{"n", "agreement", "kl", "top1", "top1_dense"}`` over the images of all processes.

    ``agreement``: percent of images for which both predict the same class; ``kl``: ``KL(dense || small)`` in nats, a
    mean; ``top1`` in percent, None where an image has no label. Batches are images (B, C, H, W), maybe with labels (B,).
    Of models without a classifier, ``{"n", "feature_error"}``, as ``evaluate`` does.
    Raises ``InputError`` for no images, and for labels that the models do not have.
    """
    if without_classifier(dense):
        return _features(dense, small, batches, progress)
    objective = Classification()
    device, counts, labelled = next(dense.parameters()).device, [0.0] * 5, True
    small = small.to(device).eval()
    with torch.inference_mode():
        for batch in track(batches, "compare", shown=progress):
            images, labels = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1].to(device))
            pair = [objective.reading(predict(model, images.to(device))) for model in (dense, small)]
            added = [len(images), agreements(*pair), float(objective.divergence(*pair)), 0.0, 0.0]
            if labels is None or int(labels.min()) < 0:
                labelled = False
            else:
                check_labels(labels, pair[0].shape[-1])
                added[3:] = [float(count_hits(logits, labels, 1)) for logits in pair]
            counts = [total + value for total, value in zip(counts, added, strict=True)]
    *sums, with_labels = map(list, zip(*gathered((*counts, labelled)), strict=True))
    n, same, divergence, hits_dense, hits = map(sum, sums)
    if not n:
        raise InputError(EMPTY)
    known = all(with_labels)
    return {
        "n": int(n),
        "agreement": 100 * same / n,
        "kl": divergence / n,
        "top1": 100 * hits / n if known else None,
        "top1_dense": 100 * hits_dense / n if known else None,
    }


def _features(
    dense: nn.Module, small: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], progress: bool
) -> dict[str, Any]:
    """Measure the error of the small model's features."""
    score, small = FeatureScore(), small.to(next(dense.parameters()).device).eval()
    with torch.inference_mode():
        for images in each_image(track(batches, "compare", shown=progress)):
            score.update(predict(small, images), predict(dense, images))
    found = {name: float(value) for name, value in score.compute().items()}
    return {"n": int(found["n"]), "feature_error": found["feature_error"]}


def agreements(dense: Tensor, small: Tensor) -> float:
    """Count the images for which two classifiers' log-probabilities, (B, classes), have the same largest class."""
    return float((dense.argmax(-1) == small.argmax(-1)).sum())
