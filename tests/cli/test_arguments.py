"""What the texts of a command line become."""

from __future__ import annotations

import argparse

import pytest

from lowrank_vit.cli.arguments import key_value, natural


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("depth=3", 3),
        ("class_token=false", False),
        ("depths=[1, 2]", [1, 2]),
        ("global_pool=avg", "avg"),
        ("a=b=c", "b=c"),
    ],
)
def test_a_value_is_json_where_it_can_be(text: str, value: object) -> None:
    key, found = key_value(text)
    assert (key, found, type(found)) == (text.partition("=")[0], value, type(value))


@pytest.mark.parametrize("text", ["depth", "=3", "a b=3", "2=3"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not KEY=VALUE"):
        key_value(text)


def test_seeds_and_counts_are_natural_numbers_of_32_bits() -> None:
    assert [natural(text) for text in ("0", "7", str(2**32 - 1))] == [0, 7, 2**32 - 1]
    for text in ("-1", str(2**32)):
        with pytest.raises(argparse.ArgumentTypeError, match="is not from 0"):
            natural(text)
