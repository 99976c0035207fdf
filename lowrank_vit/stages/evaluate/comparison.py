"""A compressed model beside the dense one, on the same images: how often classifiers agree, or how far features differ."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict, tell_implausible
from lowrank_vit.objectives.classification import Classification, classes_of, without_classifier
from lowrank_vit.records.images import Batches, each_image, images_in, known_labels
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.evaluate.accuracy import EMPTY, FeatureScore, count_hits, tell_chance

logger = logging.getLogger(__name__)


@torch.inference_mode()
def readings(dense: nn.Module, batches: Batches) -> list[Tensor]:
    """Return what a classifier predicts for each batch, on the CPU; nothing of a model without a classifier."""
    if without_classifier(dense):
        return []
    device, objective = next(dense.parameters()).device, Classification()
    return [objective.reading(predict(dense, images_in(batch).to(device))).cpu() for batch in batches]


def compare(
    dense: nn.Module, small: nn.Module, batches: Batches, *, progress: bool = False, known: Sequence[Tensor] = ()
) -> dict[str, Any]:
    """Return ``{"n", "agreement", "kl", "top1", "top1_dense"}`` over the images of all processes.

    ``agreement``: percent of images for which both predict the same class; ``kl``: ``KL(dense || small)`` in nats, a
    mean; ``top1`` in percent, None where an image has no label, or one that the models do not have, which is warned of.
    Batches are images (B, C, H, W), maybe with labels (B,). Of models without a classifier, ``{"n", "feature_error"}``,
    as ``evaluate`` does. ``known``: what ``readings`` returned for the dense classifier on these batches, which then does
    not run again.
    Raises ``InputError`` for no images, and for labels that are no class numbers.
    """
    if without_classifier(dense):
        return _features(dense, small, batches, progress)
    objective = Classification()
    device, counts, labelled, told = next(dense.parameters()).device, [0.0] * 5, True, False
    small = small.to(device).eval()
    with torch.inference_mode():
        for place, batch in enumerate(track(batches, "compare", shown=progress)):
            images, labels = images_in(batch), known_labels(batch)
            if not counts[0]:
                tell_implausible(dense, images)
            models = (small,) if known else (dense, small)
            pair = [objective.reading(predict(model, images.to(device))) for model in models]
            if known:
                pair.insert(0, known[place].to(device))
            added = [len(images), agreements(*pair), float(objective.divergence(*pair)), 0.0, 0.0]
            if labels is not None and int(labels.max()) >= pair[0].shape[-1]:
                told, labels = told or _tell_of(int(labels.max()), pair[0].shape[-1]), None
            if labels is None:
                labelled = False
            else:
                added[3:] = [float(count_hits(logits, labels.to(device), 1)) for logits in pair]
            counts = [total + value for total, value in zip(counts, added, strict=True)]
    *sums, with_labels = map(list, zip(*gathered((*counts, labelled)), strict=True))
    n, same, divergence, hits_dense, hits = map(sum, sums)
    if not n:
        raise InputError(EMPTY)
    answered = all(with_labels)
    if answered:
        tell_chance(100 * hits_dense / n, int(n), classes_of(dense))
    return {
        "n": int(n),
        "agreement": 100 * same / n,
        "kl": divergence / n,
        "top1": 100 * hits / n if answered else None,
        "top1_dense": 100 * hits_dense / n if answered else None,
    }


def _features(dense: nn.Module, small: nn.Module, batches: Batches, progress: bool) -> dict[str, Any]:
    score, small = FeatureScore(), small.to(next(dense.parameters()).device).eval()
    with torch.inference_mode():
        for images in each_image(track(batches, "compare", shown=progress)):
            score.update(predict(small, images), predict(dense, images))
    found = {name: float(value) for name, value in score.compute().items()}
    return {"n": int(found["n"]), "feature_error": found["feature_error"]}


def _tell_of(label: int, classes: int) -> bool:
    """Warn of a label that the models do not have; return True."""
    logger.warning("label %d is beyond the model's %d classes: agreement is measured, but no accuracy", label, classes)
    return True


def agreements(dense: Tensor, small: Tensor) -> float:
    """Count the images for which two classifiers' log-probabilities, (B, classes), have the same largest class."""
    return float((dense.argmax(-1) == small.argmax(-1)).sum())
