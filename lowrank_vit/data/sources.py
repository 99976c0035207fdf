"""What a SPEC string stands for: a training and a validation split of images with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from lowrank_vit.digits import CLASSES, load_split
from lowrank_vit.errors import InputError
from lowrank_vit.registry import unknown

NO_LABEL = -1


class ImageSplit(Protocol):
    """A map-style data set: ``split[i]`` is image i as its file has it, and its label (-1 where there is none)."""

    @property
    def labels(self) -> Sequence[int]:
        """The label of every image, -1 where there is none."""

    def content(self, index: int) -> bytes:
        """What identifies the image's content: its encoded bytes, or its raw pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class ImageSource:
    """An opened SPEC.

    ``num_classes`` is None where nothing has a label. ``mirrors`` says whether an image keeps its meaning when it is
    flipped and cropped: photographs do, digits do not.
    """

    spec: str
    num_classes: int | None
    train: ImageSplit | None
    validation: ImageSplit | None
    mirrors: bool = True

    def split(self, name: str) -> ImageSplit:
        """The split "train" or "validation". Raises ``InputError`` where the source lacks it."""
        if name not in ("train", "validation"):
            raise unknown("split", name, ("train", "validation"))
        split = self.train if name == "train" else self.validation
        if split is None:
            raise InputError(f"{self.spec} has no {name} split: add one, or pass another --data")
        return split


class DigitsSplit:
    """One split of scikit-learn's digits."""

    def __init__(self, images: np.ndarray, labels: Sequence[int]) -> None:
        self.images = images  # (N, 8, 8), uint8
        self.labels = labels

    def content(self, index: int) -> bytes:
        """The raw pixels."""
        return self.images[index].tobytes()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), self.labels[index]


def open_source(spec: str) -> ImageSource:
    """Open a SPEC: ``digits``, ``imagefolder:PATH``, ``parquet:PATH``, ``arrow:PATH``, ``hf:NAME``.

    Folders are listed and tables mapped, no image is decoded. Raises ``InputError`` where the SPEC is unknown or what
    it names is missing, empty or unreadable.
    """
    kind, _, target = spec.partition(":")
    openers: dict[str, Callable[[str, str], ImageSource]] = {
        "digits": _open_digits,
        "imagefolder": _open_folder,
        "parquet": _open_table,
        "arrow": _open_table,
        "hf": _open_table,
    }
    if kind not in openers:
        raise unknown("data source", spec, ("digits", "imagefolder:PATH", "parquet:PATH", "arrow:PATH", "hf:NAME"))
    if kind != "digits" and not target:
        raise InputError(f"the data source {spec!r} names nothing: write {kind}:{'NAME' if kind == 'hf' else 'PATH'}")
    return openers[kind](spec, target)


def _open_digits(spec: str, target: str) -> ImageSource:
    if spec != "digits":
        raise InputError(f"the data source {spec!r} takes no path: write digits")
    train, validation = (
        DigitsSplit(images, labels.tolist()) for images, labels in (load_split("train"), load_split("validation"))
    )
    return ImageSource(spec, CLASSES, train, validation, mirrors=False)


def _open_folder(spec: str, target: str) -> ImageSource:
    from lowrank_vit.data.folders import open_folder

    return open_folder(spec, target)


def _open_table(spec: str, target: str) -> ImageSource:
    from lowrank_vit.data.tables import open_table

    return open_table(spec, target)
