"""What a specification opens: digits, photographs, tables of Parquet and Arrow; and what is none."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_vit.data import open_source
from lowrank_vit.data.kinds import source_kinds
from lowrank_vit.data.splits import NO_LABEL, SOURCES
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import TENCH, TOILET_PAPER, data, picture, write


def test_the_digits_split_is_stratified() -> None:
    source = open_source("digits")
    train, validation = source.split("train"), source.split("validation")
    assert (len(train), len(validation), source.num_classes) == (1297, 500, 10)
    assert np.bincount(validation.labels).min() >= 48
    contents = [{split.content(index) for index in range(len(split))} for split in (train, validation)]
    assert not contents[0] & contents[1]


def test_kinds_are_known_before_anything_is_imported() -> None:
    assert source_kinds() == SOURCES.names()


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Two labelled training images, one to evaluate on, three photographs."""
    write(tmp_path / "labelled" / "train" / TENCH, 1, 2)
    write(tmp_path / "labelled" / "validation" / TOILET_PAPER, 3)
    write(tmp_path / "photos" / "b", 4)
    write(tmp_path / "photos" / "a", 5)
    write(tmp_path / "photos", 6)
    write(tmp_path / "photos" / ".thumbnails", 7)
    return f"joined:{tmp_path}/photos,imagefolder:{tmp_path}/labelled"


def test_photographs_follow_the_training_images(spec: str) -> None:
    source = open_source(spec)
    train = source.split("train")
    assert (source.spec, source.num_classes, source.mirrors) == (spec, 1000, True)
    assert list(train.labels) == [0, 0, NO_LABEL, NO_LABEL, NO_LABEL]
    assert len(train) == 5
    rest, photos = spec.removeprefix("joined:").split(",imagefolder:")[1], spec.split(",")[0].removeprefix("joined:")
    files = [f"{rest}/train/{TENCH}/001.png", f"{rest}/train/{TENCH}/002.png"]
    files += [f"{photos}/006.png", f"{photos}/a/005.png", f"{photos}/b/004.png"]
    assert {train.content(index) for index in range(5)} == {Path(file).read_bytes() for file in files}
    assert [train[index][1] for index in range(5)] == list(train.labels)
    assert train.reduced(8)[4][0].size == train[4][0].size


def test_loose_photographs_calibrate(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    source = open_source(f"imagefolder:{tmp_path}")
    assert (len(source.split("train")), source.num_classes) == (5, None)
    with pytest.raises(InputError, match="no validation split"):
        source.split("validation")
    write(tmp_path / "validation" / "cat", 7)
    source = open_source(f"imagefolder:{tmp_path}")
    assert (list(source.split("train").labels), list(source.split("validation").labels)) == ([-1] * 5, [0])


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
