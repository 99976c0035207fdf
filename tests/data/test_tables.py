"""Parquet files, saved data sets and the hub: the same images and labels, and what is broken is named."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_vit.data import open_source
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import TENCH, TOILET_PAPER, data, picture


def same_images(source: Any, first: int = 0) -> bool:
    split = source.split("train")
    return all(np.array_equal(split[i][0], picture(first + i)) for i in range(len(split)))


@pytest.mark.parametrize("nested", ["", "data"])
def test_parquet_round_trip(tables: Any, tmp_path: Path, nested: str) -> None:
    where = tmp_path / "table" / nested
    where.mkdir(parents=True)
    tables["train"].select(range(4)).to_parquet(where / "train-00000-of-00002.parquet")
    tables["train"].select(range(4, 7)).to_parquet(where / "train-00001-of-00002.parquet")
    tables["validation"].to_parquet(where / "test-00000-of-00001.parquet")
    spec = f"parquet:{tmp_path / 'table'}"
    source = open_source(spec)
    assert source.num_classes == 3
    assert list(source.split("train").labels) == [0, 1, 2, 0, 1, 2, 0]
    assert len(source.split("validation")) == 4
    assert same_images(source)
    assert data(spec).calibration_tensor().shape == (6, 3, 16, 16)
    assert data(spec).calibration_fingerprint == data(spec).calibration_fingerprint
    pickle.loads(pickle.dumps(data(spec).val_dataloader().dataset))


def test_arrow_round_trip(tables: Any, tmp_path: Path) -> None:
    tables.save_to_disk(str(tmp_path / "saved"))
    source = open_source(f"arrow:{tmp_path / 'saved'}")
    assert same_images(source)
    assert list(source.split("validation").labels) == [0, 1, 2, 0]


def test_tables_by_wnid_by_name_and_without_labels(tables: Any, tmp_path: Path) -> None:
    import datasets

    def opened(table: datasets.Dataset, folder: str) -> Any:
        datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / folder))
        return open_source(f"arrow:{tmp_path / folder}")

    train = tables["train"].select(range(2))
    bare = train.remove_columns("label")
    wnids = train.cast_column("label", datasets.ClassLabel(names=[TOILET_PAPER, TENCH]))
    assert list(opened(wnids, "wnids").split("train").labels) == [999, 0]
    assert list(opened(bare.add_column("label", ["dog", "cat"]), "names").split("train").labels) == [1, 0]
    unlabelled = opened(bare, "bare")
    assert unlabelled.num_classes is None
    assert list(unlabelled.split("train").labels) == [-1, -1]
    with pytest.raises(InputError, match="no validation split"):
        unlabelled.split("validation")
