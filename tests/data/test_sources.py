"""What a specification opens, the embedded digits among it, and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowrank_vit.data import open_source
from lowrank_vit.data.kinds import source_kinds
from lowrank_vit.data.splits import SOURCES
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import (
    one_line,
)


def test_the_digits_split_is_stratified() -> None:
    source = open_source("digits")
    train, validation = source.split("train"), source.split("validation")
    assert (len(train), len(validation), source.num_classes) == (1297, 500, 10)
    assert np.bincount(validation.labels).min() >= 48
    contents = [{split.content(index) for index in range(len(split))} for split in (train, validation)]
    assert not contents[0] & contents[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits:x", "takes no path"),
        ("imagefolder:", "write imagefolder:PATH"),
        ("imagefolder:{}/nowhere", "no folder"),
        ("imagefolder:{}", "neither train/ nor validation/"),
        ("parquet:{}/nowhere", "no folder"),
        ("parquet:{}", "no train*.parquet"),
        ("arrow:{}/nowhere", "no folder"),
        ("arrow:{}", "cannot be read"),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        open_source(spec.format(tmp_path))
    assert message in one_line(error)


def test_kinds_are_known_before_anything_is_imported() -> None:
    assert source_kinds() == SOURCES.names()
