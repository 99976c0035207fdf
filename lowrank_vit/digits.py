"""The embedded images: scikit-learn's 1797 scans of handwritten digits, split once and for all."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    """The scans of one split: images (N, 8, 8) in 0..255 and labels (N,) in 0..9; 1297 train, 500 validation.

    The split is stratified by class and the same in every session. The arrays are shared: copy before writing.
    """
    return _splits()[split]
