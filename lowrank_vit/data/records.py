"""What an opened source is: splits of images with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

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
