"""What the texts of a command line become."""

import pytest

from lowrank_vit.cli.arguments import key_value


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
