"""The images of one source, transformed for one model, as a LightningDataModule."""

from __future__ import annotations

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

from lowrank_vit.data.loading import (
    ImageLoader,
    TransformedImages,
    default_workers,
    evaluation_transform,
    input_channels,
    make_loader,
    training_transform,
)
from lowrank_vit.data.records import ImageSource, ImageSplit
from lowrank_vit.data.sampling import (
    CALIBRATION,
    EVALUATION,
    HELD_OUT,
    EpochSampler,
    ShardSampler,
    draw,
    draw_balanced,
    hash_indices,
)
from lowrank_vit.data.sources import open_source
from lowrank_vit.errors import InputError


class ImageData(lightning.LightningDataModule):
    """Loaders for training, evaluation, calibration and held-out checks of the images that ``spec`` stands for.

    ``data_config`` is what ``timm.data.resolve_model_data_config(model)`` gives: every transform comes from it. A batch
    is images (N, C, H, W), float32, and labels (N,), int64, -1 where there is none. Under ``torch.distributed`` each
    process gets its share: every image exactly once over all of them, except in training, where the last round is
    padded. Nothing is read before the first use.

    ``calibration_samples`` images of the training split serve for calibration (all, with a warning, if there are
    fewer), ``held_out_samples`` of the validation split for the error on unseen images, ``limit`` (or all) for
    evaluation; the draws depend on ``seed`` only, and a smaller draw is a part of a larger one. ``stratified``
    calibrates on as many images of each class. ``augment`` crops and flips the training images at random, where that
    keeps their meaning. ``workers`` is the number of loading processes: by default up to four, and none for digits.

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
        held_out_samples: int = 256,
        limit: int | None = None,
        seed: int = 0,
        stratified: bool = False,
        workers: int | None = None,
        calibration_split: str = "train",
        evaluation_split: str = "validation",
        augment: bool = True,
    ) -> None:
        super().__init__()
        if calibration_split != "train":
            raise InputError(
                f"calibration on the {calibration_split!r} split is refused: its images measure the result; use 'train'"
            )
        counts = {
            "batch_size": batch_size,
            "calibration_samples": calibration_samples,
            "held_out_samples": held_out_samples,
            "limit": 1 if limit is None else limit,
        }
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} is {count}: at least one image is needed")
        self.channels = input_channels(data_config)
        self.spec = spec
        self.data_config = dict(data_config)
        self.batch_size = batch_size
        self.calibration_samples = calibration_samples
        self.held_out_samples = held_out_samples
        self.limit = limit
        self.seed = seed
        self.stratified = stratified
        self.workers = workers
        self.evaluation_split = evaluation_split
        self.augment = augment

    @functools.cached_property
    def source(self) -> ImageSource:
        """The opened source."""
        return open_source(self.spec)

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the source, None where it has no labels."""
        return self.source.num_classes

    def train_dataloader(self) -> ImageLoader:
        """The training split, shuffled by (seed, epoch) and augmented."""
        split = self._labelled("train", "fine-tuning")
        augment = self.augment and self.source.mirrors
        transform = training_transform(self.data_config) if augment else evaluation_transform(self.data_config)
        images = TransformedImages(split, range(len(split)), transform, self.channels)
        return make_loader(images, EpochSampler(len(split), self.seed), self.batch_size, self._workers())

    def val_dataloader(self) -> ImageLoader:
        """The ``evaluation_split``, or ``limit`` images of it."""
        split = self._labelled(self.evaluation_split, "evaluation")
        if self.limit is None or self.limit >= len(split):
            return self._in_order(split, range(len(split)))
        return self._in_order(split, draw(len(split), self.limit, self.seed, EVALUATION))

    def calibration_dataloader(self) -> ImageLoader:
        """The calibration images, always in the same order."""
        return self._in_order(self.source.split("train"), self.calibration_indices)

    def held_out_dataloader(self) -> ImageLoader:
        """Images that calibration has not seen, for the error report; they need no labels."""
        return self._in_order(self.source.split("validation"), self.held_out_indices)

    def calibration_tensor(self) -> Tensor:
        """All calibration images in memory, whatever the process: (samples, C, H, W), float32."""
        return self._tensor(self.source.split("train"), self.calibration_indices)

    def held_out_tensor(self) -> Tensor:
        """The same of the held-out images."""
        return self._tensor(self.source.split("validation"), self.held_out_indices)

    @functools.cached_property
    def calibration_indices(self) -> list[int]:
        """Which images of the training split calibrate, in order."""
        split = self.source.split("train")
        if self.calibration_samples > len(split):
            warnings.warn(
                f"{self.spec} has {len(split)} training images: calibrating on all of them instead of "
                f"{self.calibration_samples}",
                stacklevel=2,
            )
        if self.stratified:
            return draw_balanced(split.labels, self.calibration_samples, self.seed, CALIBRATION)
        return draw(len(split), self.calibration_samples, self.seed, CALIBRATION)

    @property
    def calibration_record(self) -> dict[str, Any]:
        """What a report says about the calibration: the source, the hash of the indices, how many images."""
        indices = self.calibration_indices
        return {"source": self.spec, "indices_sha256": hash_indices(indices), "samples": len(indices)}

    @functools.cached_property
    def held_out_indices(self) -> list[int]:
        """Which images of the validation split are held out, in order."""
        return draw(len(self.source.split("validation")), self.held_out_samples, self.seed, HELD_OUT)

    @functools.cached_property
    def calibration_fingerprint(self) -> str:
        """The sha256 of all that the statistics depend on but the model: the images' content, order and transform.

        It is the same wherever the same images lie, and another as soon as one of them is replaced.
        """
        return self._fingerprint("train", self.calibration_indices)

    @functools.cached_property
    def held_out_fingerprint(self) -> str:
        """The same for the held-out images."""
        return self._fingerprint("validation", self.held_out_indices)

    def _fingerprint(self, split_name: str, indices: Sequence[int]) -> str:
        split = self.source.split(split_name)
        digest = hashlib.sha256(json.dumps(self.data_config, sort_keys=True, default=str).encode())
        digest.update(hash_indices(indices).encode())
        for index in indices:
            digest.update(hashlib.sha256(split.content(index)).digest())
        return digest.hexdigest()

    def _in_order(self, split: ImageSplit, indices: Sequence[int]) -> ImageLoader:
        images = self._images(split, indices)
        return make_loader(images, ShardSampler(len(images)), self.batch_size, self._workers())

    def _tensor(self, split: ImageSplit, indices: Sequence[int]) -> Tensor:
        images = self._images(split, indices)
        loader = make_loader(images, SequentialSampler(images), self.batch_size, self._workers())
        batches = [batch for batch, _ in loader]
        return torch.cat(batches)

    def _images(self, split: ImageSplit, indices: Sequence[int]) -> TransformedImages:
        return TransformedImages(split, indices, evaluation_transform(self.data_config), self.channels)

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
