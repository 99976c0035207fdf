"""Loose photographs calibrate; what is held out, or left out, is said."""

from pathlib import Path

import pytest

from lowrank_vit.data import open_source
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import write


def test_loose_photographs_calibrate(tmp_path: Path) -> None:
    write(tmp_path, *range(5))
    source = open_source(f"imagefolder:{tmp_path}")
    assert (len(source.split("train")), source.num_classes) == (5, None)
    with pytest.raises(InputError, match="no validation split"):
        source.split("validation")
    write(tmp_path / "validation" / "cat", 7)
    source = open_source(f"imagefolder:{tmp_path}")
    assert (list(source.split("train").labels), list(source.split("validation").labels)) == ([-1] * 5, [0])
