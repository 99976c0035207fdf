"""Measure what features are good for once the classifier is gone: nearest neighbours, and a linear probe.

The classifier is taken off before the model is compressed, so no method can look at it. Labels are read by what is
measured alone: the training images with theirs are the gallery, the images of the evaluation are the queries.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import compression_passes
from lowrank_vit import compress
from lowrank_vit.data import ImageData
from lowrank_vit.objectives.features import feature_error, feature_sums
from lowrank_vit.records.images import Images

NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the neighbours' votes, as DINO has it
RIDGE = 0.1  # of the probe, relative to the features' mean variance: fixed, so that no image chooses it
GALLERY = 20_000  # training images at most
DIGITS = 6


def forward_passes(job: Job) -> float:
    """Count the passes of the compression, and of both models on the gallery and on the queries."""
    train, validation = (int(count) for count in job.images.split("+"))
    evaluated = min(train, GALLERY) + min(job.limit or validation, validation)
    return (0 if job.recipe is None else compression_passes(job)) + 2 * evaluated


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "knn" and "probe", both top-1 in percent, and "feature_error", on the evaluation's images."""
    dense = copy.deepcopy(model)
    dense.reset_classifier(0)  # type: ignore[operator]  # as all of timm's have it
    small = dense
    if job.recipe is not None:
        ledger.tell(f"compress by {job.recipe}")
        images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
        device = str(next(model.parameters()).device)
        small, _ = compress(dense, images, job.recipe_used(), job.reduction, seed=job.seed, device=device)
    ledger.tell("features of the gallery")
    gallery, known = features(small, data, "train", GALLERY)
    ledger.tell("features of the queries")
    queries, wanted = features(small, data, data.evaluation_split, data.limit)
    true, _ = (queries, wanted) if small is dense else features(dense, data, data.evaluation_split, data.limit)
    shown = torch.isin(wanted, known)  # the others have no neighbour of their class
    queries, true, wanted = queries[shown], true[shown], wanted[shown]
    found = {
        "knn": percent(nearest(gallery, known, queries), wanted),
        "probe": percent(probed(gallery, known, queries), wanted),
        "feature_error": float(feature_error(feature_sums(true, queries))),
    }
    return {"images": {"gallery": len(gallery), "queries": len(queries)}} | {
        name: round(value, DIGITS) for name, value in found.items()
    }


def features(model: nn.Module, data: ImageData, split: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return the features, (N, n), float64, and the labels, (N,), of a split's images, none of them augmented."""
    part = copy.copy(data)
    part.evaluation_split, part.limit = split, limit
    device = next(model.parameters()).device
    with torch.inference_mode():
        pairs = [(model(images.to(device)).cpu().double(), labels) for images, labels in part.val_dataloader()]
    found, labels = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
    return found, labels


def nearest(gallery: Tensor, labels: Tensor, queries: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return for each query, (M, n), the label that its nearest neighbours in the gallery, (N, n), vote for, by cosine.

    A vote weighs ``exp(cosine / TEMPERATURE)``. Where each class has one image, the nearest one decides.
    """
    cosines = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    closest = cosines.topk(min(neighbours, len(gallery)), dim=1)
    votes = queries.new_zeros(len(queries), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[closest.indices], (closest.values / TEMPERATURE).exp())
    return votes.argmax(1)


def probed(gallery: Tensor, labels: Tensor, queries: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return the label that a linear classifier gives each of the queries: ridge regression on the classes."""
    mean = gallery.mean(0)
    x, classes = gallery - mean, F.one_hot(labels).to(gallery)
    gram = x.T @ x / len(x)
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(damped, x.T @ (classes - classes.mean(0)) / len(x))
    return ((queries - mean) @ weight + classes.mean(0)).argmax(1)


def percent(answers: Tensor, labels: Tensor) -> float:
    """Return how many answers are right, in percent."""
    return 100 * float((answers == labels).double().mean())


MEASURES.register("neighbours")(Measure(measure, forward_passes))
