"""A set of images to collect statistics on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from lowrank_vit.runtime.errors import InputError, worker_died
from lowrank_vit.runtime.processes import gathered

Batch = Tensor | Sequence[Any] | Mapping[str, Any]  # images; or a sequence that begins with them; or a dictionary
Batches = Iterable[Batch]
IMAGES, LABELS = ("pixel_values", "image", "images"), ("labels", "label")  # in a batch that is a dictionary


def _entry(batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    name = next((name for name in names if name in batch), None)
    if name is None:
        raise InputError(f"a batch has the entries {list(batch)}: name one of them {' or '.join(map(repr, names))}")
    return batch[name]


def images_in(batch: Batch) -> Tensor:
    """Return a batch's images, (B, C, H, W), in float32 at least. Raises ``InputError`` where there are none, or integers."""
    images = batch
    if not isinstance(batch, Tensor):
        images = _entry(batch, IMAGES) if isinstance(batch, Mapping) else batch[0]
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"a batch of images is {kind}: pass tensors of normalised floats, as the model was trained with"
        )
    return images.float() if images.itemsize < 4 else images


def labels_in(batch: Batch) -> Tensor:
    """Return a batch's labels, (B,). Raises ``InputError`` where there are none."""
    if isinstance(batch, Mapping):
        labels: Tensor = _entry(batch, LABELS)
        return labels
    if isinstance(batch, Tensor) or len(batch) < 2:
        raise InputError("a batch has no labels: pass pairs of images and labels")
    labels = batch[1]
    return labels


def each_image(batches: Batches) -> Iterator[Tensor]:
    """Yield the images of each batch, (B, C, H, W). Raises ``InputError`` where a process that loads them has died."""
    try:
        for batch in batches:
            yield images_in(batch)
    except RuntimeError as error:
        raise worker_died(error) or error from None


@dataclass(frozen=True)
class Images:
    """Hold batches of images, and what identifies them where they have a name.

    ``fingerprint``: a hash of their content; with it the statistics are cached on disk. ``record``: what a report
    says of them.
    """

    batches: Batches
    fingerprint: str | None = None
    record: dict[str, Any] | None = None

    @classmethod
    def of(cls, given: Batches | Images) -> Images:
        """Return the images as such. Raises ``InputError`` for anything but batches."""
        if isinstance(given, Images):
            return given
        kind = f"one tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        batches = given.dim() > 4 if isinstance(given, Tensor) else hasattr(given, "__iter__")
        if not batches or isinstance(given, str):
            raise InputError(f"the images are {kind}: pass batches, a DataLoader or a list of tensors (B, C, H, W)")
        return cls(given)

    def tensor(self) -> Tensor:
        """Load all images into memory in order, (N, C, H, W), collected from all processes, which take turns at them."""
        shares = gathered(torch.cat(list(self.each())))
        whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
        for rank, share in enumerate(shares):
            whole[rank :: len(shares)] = share
        return whole

    def each(self) -> Unlabelled:
        """Return the batches without labels, (B, C, H, W), to go through once or more."""
        return Unlabelled(self.batches)


@dataclass(frozen=True)
class Unlabelled:
    """Yield the images of batches, without what comes with them."""

    batches: Batches

    def __iter__(self) -> Iterator[Tensor]:
        return each_image(self.batches)

    def __len__(self) -> int:
        return length_hint(self.batches)
