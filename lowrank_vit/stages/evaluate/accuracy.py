"""Top-1, top-5 and loss of a classifier, or the error of features; every image counts once, on any number of devices.

A warning comes first where the classes of the data cannot be those that the model predicts.
"""

import base64
import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torchmetrics import Metric

from lowrank_vit.data.classes import IMAGENET_CLASSES, are_ranks
from lowrank_vit.modules.predicting import predict, tell_implausible
from lowrank_vit.objectives.classification import Classification, classes_of, without_classifier
from lowrank_vit.objectives.features import feature_error, feature_sums
from lowrank_vit.records.images import (
    Batch,
    Batches,
    Images,
    Unlabelled,
    check_labels,
    each_batch,
    images_in,
    labels_in,
)
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.processes import gathered, is_first, rank_and_world
from lowrank_vit.runtime.trainer import make_trainer, quiet_run

ENOUGH = 50  # images, to tell a model from chance
SEEN = 0.9  # of a model's classes: numbers without names may lack the last few
EMPTY = "no images to evaluate: the data set, its validation split or `limit=` is empty"


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
            "predicts another order; name the folders by wnids, or give `class_order=`"
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


def tell_chance(top1: float, images: int, classes: int | None) -> None:
    """Warn, once, where a model's ``top1``, in percent, is no more than guesses reach: its classes have other numbers."""
    chance = 1 / (classes or math.inf)
    guessed = chance + 2 * math.sqrt(chance * (1 - chance) / images)
    if classes and images >= ENOUGH and top1 <= 100 * guessed and is_first():
        warnings.warn(
            f"top-1 is {top1:.2f} % on {images} images, no more than by chance ({100 * chance:.3g} %): their labels do not "
            "look like the model's classes; read them by ImageData, which numbers classes by their names, name folders by "
            "wnids, or give `class_order=`",
            stacklevel=2,
        )


PRECISE = torch.float32 if torch.backends.mps.is_available() else torch.float64  # Apple's GPUs have no float64


def count_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Count the labels, (batch,), that are among the k largest logits, (batch, classes)."""
    k = min(k, logits.shape[-1])
    return (logits.topk(k, dim=-1).indices == labels[:, None]).sum()


def pack_hits(hits: Tensor) -> str:
    """Write which images were hit, (n,) booleans, as text: one bit for each, in base64.

    >>> pack_hits(torch.tensor([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(hits.cpu().numpy()).tobytes()).decode()


class ClassificationScore(Metric):
    """Count hits and images and sum the loss, in integers and one float64, over all processes."""

    full_state_update = False
    higher_is_better = None
    top1: Tensor
    top5: Tensor
    loss: Tensor
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("top1", "top5", "n"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("loss", torch.tensor(0.0, dtype=PRECISE), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch. logits: (batch, classes), labels: (batch,)."""
        # not in place: spawned processes start with the same memory under their states
        self.top1 = self.top1 + count_hits(logits, labels, 1)
        self.top5 = self.top5 + count_hits(logits, labels, 5)
        self.loss = self.loss + F.cross_entropy(logits.float(), labels, reduction="none").to(self.loss.dtype).sum()
        self.n = self.n + len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return percentages, mean loss and number of images, in the loss's precision."""
        n = self.n.to(self.loss.dtype)
        return {"top1": 100 * self.top1 / n, "top5": 100 * self.top5 / n, "loss": self.loss / n, "n": n}


class ComparedScore(ClassificationScore):
    """Score a classifier beside the dense one: also the dense one's hits, equal predictions and the divergence."""

    hits: Tensor
    same: Tensor
    divergence: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "same"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("divergence", torch.tensor(0.0, dtype=PRECISE), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, dense: Tensor | None = None) -> None:
        """Count a batch. logits, and those of the dense model: (batch, classes), labels: (batch,)."""
        assert dense is not None
        super().update(logits, labels)
        pair = [each.to(PRECISE).log_softmax(-1) for each in (dense, logits)]
        self.hits = self.hits + count_hits(dense, labels, 1)
        self.same = self.same + (dense.argmax(-1) == logits.argmax(-1)).sum()
        self.divergence = self.divergence + Classification().divergence(*pair)

    def compute(self) -> dict[str, Tensor]:
        """Return what ``ClassificationScore`` does, and ``top1_dense``, ``agreement`` (percent) and ``kl`` (nats, a mean)."""
        n = self.n.to(self.loss.dtype)
        beside = {"top1_dense": 100 * self.hits / n, "agreement": 100 * self.same / n, "kl": self.divergence / n}
        return super().compute() | beside


class FeatureScore:
    """Measure the error of features, in shares of their variance over the images scored, over all processes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums, self.n = torch.tensor(0.0, dtype=PRECISE), 0

    def update(self, features: Tensor, dense: Tensor) -> None:
        """Add a batch. Both: (batch, ..., n)."""
        self.sums = self.sums + feature_sums(dense.to(PRECISE), features.to(PRECISE)).cpu()
        self.n += len(features)

    def compute(self) -> dict[str, Tensor]:
        """Return ``feature_error`` and the number of images. Raises ``InputError`` where there are none."""
        shares = [(sums, n) for sums, n in gathered((self.sums, self.n)) if n]
        if not shares:
            raise InputError(EMPTY)
        sums, counts = zip(*shares, strict=True)
        return {"feature_error": feature_error(torch.stack(sums).sum(0)), "n": torch.tensor(sum(counts), dtype=PRECISE)}


class Evaluation(LightningModule):
    """Feed batches ``(images (B, C, H, W), labels (B,))`` to the model, and the dense one, and their outputs to the score."""

    score: ClassificationScore | FeatureScore

    def __init__(
        self, model: nn.Module, dense: nn.Module | None = None, score: ClassificationScore | FeatureScore | None = None
    ) -> None:
        super().__init__()
        self.model, self.dense = model, dense
        self.score = score or (ClassificationScore() if dense is None else ComparedScore())
        self.hits: list[Tensor] = []  # of this process's images, in their order

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch. Raises ``InputError`` for labels that cannot be scored."""
        images, labels = images_in(batch), labels_in(batch)
        if not len(images):
            return
        if batch_idx == 0:
            tell_implausible(self.model, images)
        logits = predict(self.model, images)
        if logits.ndim != 2:
            shape = ", ".join(map(str, logits.shape[1:]))
            raise InputError(f"the model returns (B, {shape}), which class numbers cannot score: pass a classifier")
        check_labels(labels, logits.shape[-1])
        self.hits.append(logits.topk(1, dim=-1).indices[:, 0] == labels)
        beside = [] if self.dense is None else [predict(self.dense, images)]
        self.score.update(logits, labels, *beside)

    def on_validation_epoch_end(self) -> None:
        """Sum over the processes once and log the result; "max" over equal values logs them without rounding."""
        for name, value in self.score.compute().items():
            self.log(name, value, sync_dist=True, reduce_fx="max")
        self.score.reset()


class FeatureEvaluation(Evaluation):
    """Feed images to the model and the dense one, and compare their features; labels are not read."""

    def __init__(self, model: nn.Module, dense: nn.Module) -> None:
        super().__init__(model, dense, FeatureScore())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.dense is not None
        images = images_in(batch)
        if batch_idx == 0:
            tell_implausible(self.model, images)
        self.score.update(predict(self.model, images), predict(self.dense, images))


def shard(loader: DataLoader) -> DataLoader:
    """Return this process's share of the loader: images rank, rank + world, ... without padding.

    A loader with a sampler of its own is taken to be sharded already. Raises ``InputError`` for an iterable data set.
    """
    rank, world = rank_and_world()
    if world == 1:
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise InputError("an iterable data set cannot be divided among devices: evaluate on one device")
    if type(loader.sampler) not in (SequentialSampler, RandomSampler):
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 1,
        sampler=range(rank, len(loader.dataset), world),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


class _LoaderModule(LightningDataModule):
    """Wrap a plain loader, or batches, as a data module, so that they are shared out inside the worker process."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self.batches = batches

    def val_dataloader(self) -> Iterable[Batch]:
        """Return this process's share: of a loader's images, or of whole batches."""
        return shard(self.batches) if isinstance(self.batches, DataLoader) else each_batch(self.batches)


def _evaluation(model: nn.Module, dense: nn.Module | None) -> Evaluation:
    """Return the evaluation that suits a model. Raises ``InputError`` without a classifier and without a dense model."""
    missing = without_classifier(model)
    if not missing:
        return Evaluation(model, dense)
    if dense is None:
        raise InputError(
            f"the model {missing}, so it has no accuracy: pass the dense model (`dense=`) to compare its features with"
        )
    return FeatureEvaluation(model, dense)


def evaluate(
    model: nn.Module,
    dataloader: Batches | LightningDataModule,
    *,
    dense: nn.Module | None = None,
    hardware: Hardware = ONE_PROCESS,
    progress: bool = True,
    hits: bool = False,
) -> dict[str, Any]:
    """Return ``{"top1", "top5", "loss", "n"}``: percent, percent, mean cross-entropy, number of images.

    ``hits``: add which images of a classifier were hit, as ``pack_hits`` writes it, so that two models can be compared
    image by image; one process alone knows them all, several add nothing.

    With the ``dense`` model, add its ``top1_dense``, and ``agreement`` and ``kl`` as ``comparison.compare`` returns them.
    Of a model without a classifier, return ``{"feature_error", "n"}``: the mean over all features of
    ``E (f - f')^2 / Var f``, f the features of the ``dense`` model, f' its own, over these images.

    With fewer than five classes, top-5 is of all of them. With several processes pass a data module: each process calls
    its ``val_dataloader``, which shards the indices without padding; a plain loader without a sampler of its own is
    sharded here, and of a list of batches each process takes some. A warning comes first where the data's classes cannot be
    the model's. The precision is float32 unless ``hardware`` names another. The model comes back on its own device and
    in its own mode.
    Raises ``InputError`` for no images, missing or foreign labels, devices that are not there, and a model without a
    classifier where there is no dense one.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError("the model is on the device 'meta', without weights: make it on the CPU, and load some")
    evaluation = _evaluation(model, dense)
    data = dataloader
    if not isinstance(data, LightningDataModule):
        data = _LoaderModule(Images.of(data).batches)
    misfits = False
    if isinstance(evaluation.score, ClassificationScore):
        misfits = tell_misfit(model, dataloader)
    precision = hardware.precision
    if precision is not None and precision not in ("32", "32-true") and not precision.endswith("mixed"):
        evaluation = copy.deepcopy(evaluation)  # Lightning converts the weights in place
    with quiet_run(data, evaluation):
        trainer = make_trainer(hardware, progress=progress, logger=False, enable_checkpointing=False)
        results = trainer.validate(evaluation, datamodule=data, verbose=False)
    if not results or not results[0]["n"]:
        raise InputError(EMPTY)
    loss = results[0].get("loss", 0.0)
    if loss != loss:  # NaN
        raise InputError("the model's outputs are not numbers for some images: check the weights and the images")
    found: dict[str, Any] = {**results[0], "n": round(results[0]["n"])}
    if "top1" in found and not misfits:
        tell_chance(found.get("top1_dense", found["top1"]), found["n"], classes_of(model))
    if hits and sum(map(len, evaluation.hits)) == found["n"]:
        found["hits"] = pack_hits(torch.cat(evaluation.hits))
    return found
