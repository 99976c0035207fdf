"""What the texts of a command line become."""

from pathlib import Path

import pytest

from lowrank_vit.cli.arguments import key_value
from tests.support.commands import refused


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plan --model x --data {folder}", "did you mean imagefolder:{folder}?"),
        ("plan --model x --data digits --budget 0.6", "budget 0.6 names no cost: did you mean params=0.6?"),
        ("sweep --model x --data digits --reduction 1.5", "is a share between 0 and 1, such as 0.4 for 40 %"),
        ("sweep --model x --data digits --reduction 40%", "'40%' is not a share between 0 and 1, such as 0.4 for 40 %"),
        ("plan --model deit_tiny_patch16_22 --data digits --recipe svd", "similar names: deit_tiny_patch16_224, "),
        ("list", "{models,recipes,methods,"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told.replace("{folder}", str(tmp_path)) in refused(capsys, *words.replace("{folder}", str(tmp_path)).split())
