"""From a SPEC string to the source that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lowrank_vit.data.folders import open_folder
from lowrank_vit.data.records import ImageSource
from lowrank_vit.data.tables import open_table
from lowrank_vit.digits import CLASSES, load_split
from lowrank_vit.errors import InputError
from lowrank_vit.registry import unknown


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
        "imagefolder": open_folder,
        "parquet": open_table,
        "arrow": open_table,
        "hf": open_table,
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
