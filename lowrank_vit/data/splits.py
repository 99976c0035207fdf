"""What an opened source is: splits of images with labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry, unknown

NO_LABEL = -1


class ImageSplit(Protocol):
    """Define a map-style data set: ``split[i]`` is image i as its file has it, and its label (-1 where there is none)."""

    @property
    def labels(self) -> Sequence[int]:
        """Return the label of every image, -1 where there is none."""

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image's content: as they are encoded, or its raw pixels."""

    def reduced(self, side: int) -> "ImageSplit":
        """Return the same images for a transform that resizes their shorter side to ``side``: large ones decoded smaller."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


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
class Relabelled:
    """Serve a split whose labels, ranks among its class names, are replaced by ``numbers[rank]``."""

    given: ImageSplit
    numbers: Sequence[int]

    @property
    def labels(self) -> Sequence[int]:
        """Return the label of every image, -1 where there is none."""
        return [self._number(label) for label in self.given.labels]

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image's content."""
        return self.given.content(index)

    def reduced(self, side: int) -> "Relabelled":
        """Return the same images, large ones decoded smaller."""
        return Relabelled(self.given.reduced(side), self.numbers)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.given[index]
        return image, self._number(label)

    def _number(self, label: int) -> int:
        return label if label == NO_LABEL else self.numbers[label]


@dataclass(frozen=True)
class SourceKind:
    """Describe a kind of source: how its SPEC is written, and what opens it, given the SPEC and its part after the colon."""

    form: str
    open: Callable[[str, str], ImageSource]


SOURCES: Registry[SourceKind] = Registry("data source", __package__ or "")


def source(name: str, form: str) -> Callable[[Callable[[str, str], ImageSource]], Callable[[str, str], ImageSource]]:
    """Register a function that opens sources of a kind."""

    def register(opener: Callable[[str, str], ImageSource]) -> Callable[[str, str], ImageSource]:
        SOURCES.register(name)(SourceKind(form, opener))
        return opener

    return register
