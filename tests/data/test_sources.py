"""What a specification opens, the embedded digits among it, and what is none."""

import numpy as np

from lowrank_vit.data import open_source
from lowrank_vit.data.kinds import source_kinds
from lowrank_vit.data.splits import SOURCES


def test_the_digits_split_is_stratified() -> None:
    source = open_source("digits")
    train, validation = source.split("train"), source.split("validation")
    assert (len(train), len(validation), source.num_classes) == (1297, 500, 10)
    assert np.bincount(validation.labels).min() >= 48
    contents = [{split.content(index) for index in range(len(split))} for split in (train, validation)]
    assert not contents[0] & contents[1]


def test_kinds_are_known_before_anything_is_imported() -> None:
    assert source_kinds() == SOURCES.names()
