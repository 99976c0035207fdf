"""What an opened source is: splits of images with labels."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from lowrank_vit.data.decoding import read_image
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry, unknown

NO_LABEL = -1


class ImageSplit:
    """Serve images: ``split[i]`` is image i as its file has it, and its label, -1 where there is none.

    A subclass says what the bytes of an image are (``content``), and what messages call it (``where``).
    """

    side: int | None = None  # ``read_image``'s

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = labels

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image's content: as they are encoded, or its raw pixels."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        raise NotImplementedError

    def image(self, index: int) -> Image.Image:
        return read_image(self.content(index), self.where(index), self.side)

    def reduced(self, side: int) -> Self:
        """Return the same images for a transform that resizes their shorter side to ``side``: large ones decoded smaller."""
        return self.but(side=side)

    def but(self, **changes: Any) -> Self:
        """Return a copy with some attributes changed."""
        changed = copy.copy(self)
        vars(changed).update(changes)
        return changed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), self.labels[index]


@dataclass(frozen=True)
class ImageSource:
    """Hold an opened SPEC.

    ``num_classes`` is None where nothing has a label. ``mirrors`` says whether an image keeps its meaning when it is
    flipped and cropped: photographs do, digits do not. ``names``: of the classes, where they have any; an opener gives their
    ranks as labels, and ``numbered`` what they stand for. ``declared``: the data number them in this order; ``order``: the
    one that the SPEC chooses.
    """

    spec: str
    num_classes: int | None
    train: ImageSplit | None
    validation: ImageSplit | None
    mirrors: bool = True
    names: tuple[str, ...] = ()
    declared: bool = False
    order: str | None = None

    def split(self, name: str) -> ImageSplit:
        """Return the split "train" or "validation". Raises ``InputError`` where the source lacks it."""
        if name not in ("train", "validation"):
            raise unknown("split", name, ("train", "validation"))
        split = self.train if name == "train" else self.validation
        if split is None:
            raise InputError(f"{self.spec} has no {name} split: add one, or pass other images")
        return split


@dataclass(frozen=True)
class SourceKind:
    """Describe a kind of source: how its SPEC is written, and what opens it, given the SPEC and its part after the colon."""

    form: str
    open: Callable[[str, str], ImageSource]


def two_parts(spec: str, target: str, form: str, example: str) -> tuple[str, str]:
    """Split what stands before another SPEC, at the first comma, from it. Raises ``InputError`` where one is missing."""
    first, _, rest = target.partition(",")
    if not (first and rest):
        raise InputError(f"the data source {spec!r} is incomplete: write {form}, such as {example}")
    return first, rest


SOURCES: Registry[SourceKind] = Registry("data source", __package__ or "")


def source(name: str, form: str) -> Callable[[Callable[[str, str], ImageSource]], Callable[[str, str], ImageSource]]:
    """Register a function that opens sources of a kind."""

    def register(opener: Callable[[str, str], ImageSource]) -> Callable[[str, str], ImageSource]:
        SOURCES.register(name)(SourceKind(form, opener))
        return opener

    return register
