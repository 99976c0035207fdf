"""The embedded images: scikit-learn's 1797 scans of handwritten digits, split once and for all."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lowrank_vit.data.splits import ImageSource, ImageSplit, source

CLASSES = 10
VALIDATION_SIZE = 500

Scans = tuple[NDArray[np.uint8], NDArray[np.int64]]


@functools.cache
def _splits() -> dict[str, Scans]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    images = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = scans.target.astype(np.int64)
    rows = np.arange(len(labels))
    train, validation = train_test_split(rows, test_size=VALIDATION_SIZE, random_state=0, stratify=labels)
    chosen = {"train": np.sort(train), "validation": np.sort(validation)}
    return {split: (images[index], labels[index]) for split, index in chosen.items()}


def load_split(split: Literal["train", "validation"]) -> Scans:
    """Return the scans of one split: images (N, 8, 8) in 0..255 and labels (N,) in 0..9; 1297 train, 500 validation.

    The split is stratified by class and the same in every session. The arrays are shared: copy before writing.
    """
    return _splits()[split]


class DigitsSplit(ImageSplit):
    """Serve one split of scikit-learn's digits."""

    def __init__(self, images: np.ndarray, labels: Sequence[int]) -> None:
        super().__init__(labels)
        self.images = images  # (N, 8, 8), uint8

    def content(self, index: int) -> bytes:
        return self.images[index].tobytes()

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


@source("digits", "digits")
def open_digits(spec: str, target: str) -> ImageSource:
    """Open scikit-learn's digits, which are embedded."""
    train, validation = (
        DigitsSplit(images, labels.tolist()) for images, labels in (load_split("train"), load_split("validation"))
    )
    return ImageSource(spec, CLASSES, train, validation, mirrors=False)
