"""A set of images to collect statistics on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from lowrank_vit.runtime.errors import InputError, worker_died
from lowrank_vit.runtime.processes import gathered, rank_and_world

Batch = Tensor | Sequence[Any] | Mapping[str, Any]  # images; or a sequence that begins with them; or a dictionary
Batches = Iterable[Batch]
IMAGES, LABELS = ("pixel_values", "image", "images"), ("labels", "label")  # in a batch that is a dictionary
EMPTY = "there are no images: the data set is empty"
LOOKED_AT = 16  # images of a data set, of which one may have one label by chance


def _entry(batch: Mapping[str, Any], names: Sequence[str]) -> Any:
    name = next((name for name in names if name in batch), None)
    if name is None:
        raise InputError(f"a batch has the entries {list(batch)}: name one of them {' or '.join(map(repr, names))}")
    return batch[name]


def images_in(batch: Batch) -> Tensor:
    """Return a batch's images, (B, C, H, W), in float32 at least. Raises ``InputError`` where there are none, or integers."""
    images: Any = batch
    if isinstance(batch, Mapping):
        images = _entry(batch, IMAGES)
    elif isinstance(batch, list | tuple) and batch:
        images = batch[0]
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        kind = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(
            f"a batch of images is {kind}: pass tensors (B, C, H, W) of normalised floats, as the model was trained with"
        )
    return images.float() if images.itemsize < 4 else images


def labels_in(batch: Batch, several: int | None = None) -> Tensor:
    """Return a batch's labels, (B,), int64; where an image has ``several``, so many of 0 and 1, (B, several), float32.

    Raises ``InputError`` where there are none, or others.
    """
    labels, count = _given_labels(batch), len(images_in(batch))
    kind = str(labels.dtype).removeprefix("torch.")
    if several is not None:
        if labels.shape != (count, several) or not ((labels == 0) | (labels == 1)).all():
            raise InputError(
                f"the labels of {count} images are {kind} of the shape {tuple(labels.shape)}: pass a 0 or a 1 for each of "
                f"{several} labels, of the shape ({count}, {several}), as in the first batch"
            )
        return labels.float()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.shape != (count,):
        raise InputError(
            f"the labels of {count} images are {kind} of the shape {tuple(labels.shape)}: pass a class number for each, "
            f"integers of the shape ({count},), {_remedy(labels, count)}"
        )
    return labels.long()


def labels_of_several(batch: Batch) -> Tensor | None:
    """Return a batch's labels, (B, labels), where images have several each, as not just one of a row is 1; else None."""
    labels = _given_labels(batch)
    return labels if labels.ndim == 2 and labels.shape[1] > 1 and _is_several(labels) else None


def _given_labels(batch: Batch) -> Tensor:
    if isinstance(batch, Mapping):
        labels = _entry(batch, LABELS)
    elif isinstance(batch, Tensor) or len(batch) < 2:
        raise InputError("a batch has no labels: pass pairs of images and labels")
    else:
        labels = batch[1]
    return labels if isinstance(labels, Tensor) else _tensor_of(labels)


def known_labels(batch: Batch) -> Tensor | None:
    """Return a batch's labels as ``labels_in`` does; None where there are none, or where an image has none (-1)."""
    if isinstance(batch, Tensor) or (isinstance(batch, Mapping) and not batch.keys() & set(LABELS)) or len(batch) < 2:
        return None
    labels = labels_in(batch)
    return None if len(labels) and int(labels.min()) < 0 else labels


def check_labels(labels: Tensor, classes: int | None) -> None:
    """Raise ``InputError`` for labels, (B,), that are missing (-1) or that a classifier of so many classes does not have."""
    if classes == 1:
        raise InputError("the model has a single output, which no class number can score: pass a classifier")
    if not len(labels):
        return
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0:
        raise InputError(f"some images have no labels ({smallest}): give labelled ones, as of another split")
    if classes is not None and largest >= classes:
        raise InputError(f"label {largest} is beyond the model's {classes} classes: the data belong to another model")


def _tensor_of(labels: Any) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"the labels of a batch are a {type(labels).__name__}: pass a tensor with a class number for each image"
        ) from None


def _remedy(labels: Tensor, count: int) -> str:
    """Say how labels of another form become class numbers."""
    if labels.shape == (count, 1):
        return "labels[:, 0].long()"
    if labels.ndim == 2 and len(labels) == count:
        return "such as labels.argmax(1) of one-hot ones; images of several labels have no top-1"
    return "labels.long() where they are whole" if labels.shape == (count,) else "one for one"


def of_all_processes(batches: Sequence[Tensor]) -> Tensor:
    """Join rows of all processes, which have taken turns at them. Raises ``InputError`` where there are none."""
    given = gathered(torch.cat([*batches]) if batches else None)
    shares = [share for share in given if share is not None]
    if not shares:
        raise InputError(EMPTY)
    whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


def each_image(batches: Batches) -> Iterator[Tensor]:
    """Yield the images of each batch that has any, (B, C, H, W).

    Raises ``InputError`` where a process that loads them has died.
    """
    try:
        for batch in batches:
            if len(images := images_in(batch)):
                yield images
    except RuntimeError as error:
        raise worker_died(error) or error from None


def _label(item: Any) -> Any:
    """Return the entry of a dictionary that has the labels; None where there is none."""
    return next((item[name] for name in LABELS if name in item), None) if isinstance(item, Mapping) else None


def _item_label(data: Any, place: int) -> Tensor | None:
    """Return what stands for the label of one image of a data set, a row; None where it is no row."""
    try:
        item = data[place]
        label = item[1] if isinstance(item, list | tuple) and len(item) > 1 else _label(item)
        row = torch.as_tensor(label) if isinstance(label, Tensor | list | tuple) else torch.empty(0)
    except Exception:  # whatever is wrong with an image is told when it is loaded
        return None
    return row if row.ndim == 1 and len(row) > 1 else None


def _is_several(labels: Tensor) -> bool:
    """Tell whether rows, (B, labels), are of 0 and 1 with another number of 1 than one in some."""
    return bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) != 1).any())


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
    def of(cls, given: "Batches | Images") -> "Images":
        """Return the images as such. Raises ``InputError`` for anything but batches."""
        if isinstance(given, Images):
            return given
        kind = f"one tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        batches = given.dim() > 4 if isinstance(given, Tensor) else hasattr(given, "__iter__")
        if not batches or isinstance(given, str):
            raise InputError(f"the images are {kind}: pass batches, a DataLoader or a list of tensors (B, C, H, W)")
        return cls(given)

    @property
    def several_labels(self) -> bool:
        """Tell whether images come with a 0 or 1 for each of several labels, of which not just one is 1.

        Seen are the first batch of a list, or the first images of a loader's data set, unless they are known by name.
        """
        if self.fingerprint is not None:
            return False
        if isinstance(self.batches, list | tuple):
            batch = self.batches[0] if self.batches else None
            labels = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else _label(batch)
            return isinstance(labels, Tensor) and labels.ndim == 2 and _is_several(labels)
        data: Any = getattr(self.batches, "dataset", None)
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            return False
        with torch.random.fork_rng(devices=[]):
            labels = _item_label(data, 0)
            if labels is None:
                return False
            rows = [_item_label(data, place) for place in range(min(LOOKED_AT, len(data)))]
        return all(row is not None and row.shape == labels.shape for row in rows) and _is_several(
            torch.stack([row for row in rows if row is not None])
        )

    def tensor(self) -> Tensor:
        """Load all images into memory in order, (N, C, H, W), collected from all processes, which take turns at them."""
        return of_all_processes(list(self.each()))

    def each(self) -> "Unlabelled":
        """Return the batches without labels, (B, C, H, W), to go through once or more."""
        return Unlabelled(self.batches)


def all_images(given: Tensor | Batches | Images) -> Tensor:
    """Return all images in one tensor, (N, C, H, W), floats. Raises ``InputError`` where there are none."""
    images = images_in(given) if isinstance(given, Tensor) else Images.of(given).tensor()
    if not len(images):
        raise InputError(EMPTY)
    return images


@dataclass(frozen=True)
class EachBatch:
    """Yield the batches of a list, of several processes each its own; Lightning would take each for a loader."""

    batches: Batches

    def __iter__(self) -> Iterator[Batch]:
        rank, world = rank_and_world()
        return islice(iter(self.batches), rank, None, world)


class CountedBatches(EachBatch):
    """Say how many batches there are, too."""

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(range(rank, length_hint(self.batches), world))


def each_batch(batches: Batches) -> EachBatch:
    """Return batches to go through, with their number where they have one."""
    return CountedBatches(batches) if hasattr(batches, "__len__") else EachBatch(batches)


@dataclass(frozen=True)
class Unlabelled:
    """Yield the images of batches, without what comes with them."""

    batches: Batches

    def __iter__(self) -> Iterator[Tensor]:
        return each_image(self.batches)

    def __len__(self) -> int:
        return length_hint(self.batches)
