"""Folders of images that several files share."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.image_folders import picture, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine training images of three classes, five for validation."""
    for split, counts in (("train", (2, 3, 4)), ("validation", (1, 2, 2))):
        for rank, count in enumerate(counts):
            first = 100 * (split == "validation") + 10 * rank
            write(tmp_path / split / "abc"[rank], *range(first, first + count))
    return tmp_path


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})

    def rows(first: int, count: int) -> datasets.Dataset:
        found = {"image": [picture(first + i) for i in range(count)], "label": [i % 3 for i in range(count)]}
        return datasets.Dataset.from_dict(found, features=features)

    return datasets.DatasetDict({"train": rows(0, 7), "validation": rows(100, 4)})
