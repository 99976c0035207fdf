"""Loose photographs calibrate; what is held out, or left out, is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lowrank_vit.data import open_source
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import data, one_line, write


def test_loose_photographs_calibrate(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    source = open_source(f"imagefolder:{tmp_path}")
    assert (len(source.split("train")), source.num_classes) == (5, None)
    with pytest.raises(InputError, match="no validation split"):
        source.split("validation")
    write(tmp_path / "validation" / "cat", 7)
    source = open_source(f"imagefolder:{tmp_path}")
    assert (list(source.split("train").labels), list(source.split("validation").labels)) == ([-1] * 5, [0])


def test_those_beside_train_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    write(tmp_path / "train" / "cat", 3)
    with pytest.warns(UserWarning, match="2 images that lie in .* are left out"):
        assert len(open_source(f"imagefolder:{tmp_path}").split("train")) == 1


def test_class_folders_without_train_are_named(tmp_path: Path) -> None:
    write(tmp_path / "cat", 3)
    with pytest.raises(
        InputError, match=r"neither train/ nor validation/ but cat: move class folders into train/"
    ) as error:
        open_source(f"imagefolder:{tmp_path}")
    one_line(error)


def test_fewer_held_out_than_asked_for_are_told_of(tmp_path: Path) -> None:
    write(tmp_path / "train", *range(40))
    with pytest.warns(UserWarning, match="at most a tenth is held out: 4 instead of 8"):
        assert len(data(tmp_path, held_out_samples=8).held_out_indices) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data(tmp_path, held_out_samples=4).held_out_indices) == 4
        assert len(data(tmp_path).held_out_indices) == 4
