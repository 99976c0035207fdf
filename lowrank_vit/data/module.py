"""The images of one source, transformed for one model, as a LightningDataModule."""

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from lowrank_vit.data.decoding import MARGIN
from lowrank_vit.data.loading import (
    ImageLoader,
    TransformedImages,
    augmentation_record,
    default_workers,
    evaluation_transform,
    input_channels,
    make_loader,
    resized_side,
    training_transform,
)
from lowrank_vit.data.sampling import (
    CALIBRATION,
    EVALUATION,
    HELD_OUT,
    EpochSampler,
    ShardSampler,
    draw,
    draw_balanced,
    hash_indices,
    hold_out,
)
from lowrank_vit.data.sources import open_source
from lowrank_vit.data.splits import ImageSource, ImageSplit
from lowrank_vit.runtime.errors import InputError


class ImageData(lightning.LightningDataModule):
    """Load the images that ``spec`` stands for: for training, evaluation, calibration and held-out checks.

    ``data_config`` is what ``timm.data.resolve_model_data_config(model)`` gives: every transform comes from it. A batch
    is images (N, C, H, W), float32, and labels (N,), int64, -1 where there is none. Under ``torch.distributed`` each
    process gets its share: every image exactly once over all of them, except in training, where the last round is
    padded. Nothing is read before the first use.

    ``calibration_samples`` images of the training split serve for calibration, and ``held_out_samples`` others of it
    (256), but at most a tenth of it, for whatever is measured or chosen on unseen images (0: none); a warning says where
    that is fewer than asked for. So nothing is ever chosen
    on images that are evaluated. Where the split is too small for both, calibration gets the rest, with a warning.
    ``limit`` images of the evaluation split (or all) are evaluated. The draws depend on ``seed`` only, and a smaller
    draw is a part of a larger one. ``stratified`` calibrates on as many images of each class. ``augment`` crops and
    flips the training images at random, where that keeps their meaning; without it, very large JPEGs are decoded at
    reduced size (``decoding.read_image``). ``workers`` are the processes that load, for one loader of one process: by
    default one for each core, up to 16, and none for digits. Those of training and evaluation stay from epoch to epoch.
    ``classes``: how many the model has, and ``class_order``: "natural", "text" or a file with one class name a line, decide
    what class names mean (``classes.class_labels``).

    Raises ``InputError`` for a calibration on the evaluation split, a count below one, and, at the first use, a source
    that is missing, empty or without the labels that training and evaluation need.
    """

    def __init__(
        self,
        spec: str,
        data_config: Mapping[str, Any],
        *,
        batch_size: int = 64,
        calibration_samples: int = 1024,
        held_out_samples: int | None = None,
        limit: int | None = None,
        seed: int = 0,
        stratified: bool = False,
        workers: int | None = None,
        calibration_split: str = "train",
        evaluation_split: str = "validation",
        augment: bool = True,
        classes: int | None = None,
        class_order: str | None = None,
    ) -> None:
        super().__init__()
        if calibration_split != "train":
            raise InputError(
                f"calibration on the {calibration_split!r} split is refused: its images measure the result; use 'train'"
            )
        counts = {
            "batch_size": batch_size,
            "calibration_samples": calibration_samples,
            "held_out_samples": 1 if held_out_samples is None else held_out_samples or 1,
            "limit": 1 if limit is None else limit,
        }
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} is {count}: at least one image is needed")
        self.channels = input_channels(data_config)
        self.spec = spec if class_order is None else f"ordered:{class_order},{spec}"
        self.classes = classes
        self.data_config = dict(data_config)
        self.batch_size = batch_size
        self.calibration_samples = calibration_samples
        self.held_out_samples = HELD_OUT if held_out_samples is None else held_out_samples
        self._held_out_asked = held_out_samples is not None
        self.limit = limit
        self.seed = seed
        self.stratified = stratified
        self.workers = workers
        self.evaluation_split = evaluation_split
        self.augment = augment

    @functools.cached_property
    def source(self) -> ImageSource:
        return open_source(self.spec, self.classes)

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes of the source; None if it has no labels."""
        return self.source.num_classes

    def train_dataloader(self) -> ImageLoader:
        """Load the training split, shuffled by (seed, epoch) and augmented."""
        split = self._labelled("train", "fine-tuning")
        images = self._images(split, range(len(split)))
        if self._augments:  # of whole images: a crop may be a twelfth of one
            images = TransformedImages(split, images.indices, training_transform(self.data_config), self.channels)
        return make_loader(images, EpochSampler(len(split), self.seed), self.batch_size, self._workers(), again=True)

    def val_dataloader(self) -> ImageLoader:
        """Load the ``evaluation_split``, or ``limit`` images of it."""
        split = self._labelled(self.evaluation_split, "evaluation")
        if self.limit is None or self.limit >= len(split):
            return self._in_order(split, range(len(split)), again=True)
        return self._in_order(split, draw(len(split), self.limit, self.seed, EVALUATION), again=True)

    def calibration_dataloader(self) -> ImageLoader:
        """Load the calibration images, always in the same order."""
        return self._in_order(self.source.split("train"), self.calibration_indices)

    def held_out_dataloader(self) -> ImageLoader:
        """Load images that calibration has not seen, for the error report; they need no labels."""
        return self._in_order(self.source.split("train"), self.held_out_indices)

    def calibration_tensor(self) -> Tensor:
        """Load all calibration images into memory, in every process: (samples, C, H, W), float32."""
        return self._tensor(self.source.split("train"), self.calibration_indices)

    def held_out_tensor(self) -> Tensor:
        """Load all held-out images into memory, in every process: (samples, C, H, W), float32."""
        return self._tensor(self.source.split("train"), self.held_out_indices)

    @property
    def calibration_indices(self) -> list[int]:
        """Return the indices of the calibration images in the training split, in order."""
        return self._drawn[0]

    @property
    def holds_out(self) -> bool:
        """Tell whether any image is held out: none where none were asked for, or where there is a single one."""
        return bool(self._drawn[1])

    @property
    def held_out_indices(self) -> list[int]:
        """Return the indices of the held-out images in the training split, in order: none that calibration uses.

        Raises ``InputError`` where none were asked for, and for a single training image.
        """
        if not self.holds_out:
            raise InputError(
                f"{self.spec}: no image is held out; ask for held-out samples, and give two images or more"
            )
        return self._drawn[1]

    @functools.cached_property
    def _drawn(self) -> tuple[list[int], list[int]]:
        split = self.source.split("train")
        if self.stratified:
            order = draw_balanced(split.labels, len(split), self.seed, CALIBRATION)
        else:
            order = draw(len(split), len(split), self.seed, CALIBRATION)
        seen, unseen = hold_out(order, self.calibration_samples, self.held_out_samples)
        if self._held_out_asked and len(unseen) < self.held_out_samples:
            warnings.warn(
                f"{self.spec} has {len(split)} training images, of which at most a tenth is held out: {len(unseen)} instead "
                f"of {self.held_out_samples}",
                stacklevel=2,
            )
        if len(seen) < self.calibration_samples:
            kept = f" less {len(unseen)} that are held out" if unseen else ""
            warnings.warn(
                f"{self.spec} has {len(split)} training images{kept}: calibrating on {len(seen)} instead of "
                f"{self.calibration_samples}",
                stacklevel=2,
            )
        return seen, unseen

    @property
    def _augments(self) -> bool:
        return self.augment and self.source.mirrors

    @property
    def training_record(self) -> dict[str, Any]:
        """Return a report's entry on the training images: a process's batch, the augmentation (None without one)."""
        augmentation = augmentation_record(self.data_config) if self._augments else None
        return {"batch_size": self.batch_size, "augmentation": augmentation}

    @property
    def calibration_record(self) -> dict[str, Any]:
        """Return a report's entry on the calibration: the source, the hash of the indices, how many images."""
        indices = self.calibration_indices
        return {"source": self.spec, "indices_sha256": hash_indices(indices), "samples": len(indices)}

    @functools.cached_property
    def calibration_fingerprint(self) -> str:
        """Compute the sha256 of the images' content, order and transform, whatever folder they are in."""
        return self._fingerprint(self.calibration_indices)

    @functools.cached_property
    def held_out_fingerprint(self) -> str:
        return self._fingerprint(self.held_out_indices)

    def _fingerprint(self, indices: Sequence[int]) -> str:
        split = self.source.split("train")
        transform = {**self.data_config, "margin of decoding": MARGIN}
        digest = hashlib.sha256(json.dumps(transform, sort_keys=True, default=str).encode())
        digest.update(hash_indices(indices).encode())
        for index in indices:
            digest.update(hashlib.sha256(split.content(index)).digest())
        return digest.hexdigest()

    def _in_order(self, split: ImageSplit, indices: Sequence[int], again: bool = False) -> ImageLoader:
        images = self._images(split, indices)
        return make_loader(images, ShardSampler(len(images)), self.batch_size, self._workers(), again=again)

    def _tensor(self, split: ImageSplit, indices: Sequence[int]) -> Tensor:
        images = self._images(split, indices)
        loader = make_loader(images, SequentialSampler(images), self.batch_size, self._workers())
        batches = [batch for batch, _ in loader]
        return torch.cat(batches)

    def _images(self, split: ImageSplit, indices: Sequence[int]) -> TransformedImages:
        transform = evaluation_transform(self.data_config)
        return TransformedImages(split.reduced(resized_side(self.data_config)), indices, transform, self.channels)

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if self.spec == "digits" else default_workers()

    def _labelled(self, name: str, purpose: str) -> ImageSplit:
        split = self.source.split(name)
        missing = sum(label < 0 for label in split.labels)
        if missing:
            raise InputError(
                f"{missing} of the {len(split)} {name} images of {self.spec} have no label, which {purpose} needs: "
                "sort them into class folders, or add a label column"
            )
        return split
