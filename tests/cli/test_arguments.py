"""What the texts of a command line become."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from lowrank_vit.cli import main
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


def test_an_unknown_recipe_is_answered_before_timm_is_imported() -> None:
    script = (
        "import sys; from lowrank_vit.cli import main\ntry: main(sys.argv[1:])\nfinally: print('timm' in sys.modules)"
    )
    wrong = ["compress", "--model", "x", "--data", "digits", "--recipe", "exakt", "--reduction", "0.5", "--out", "x"]
    done = subprocess.run([sys.executable, "-c", script, *wrong], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "False\n", 1)
    assert "unknown recipe 'exakt': did you mean 'exact'?" in done.stderr


def test_two_dashes_are_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse makes an empty list of them, which no verb expects."""
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "somewhere", "--batches=--"])
    assert stopped.value.code == 2
    assert "argument --batches: a value is expected, not '--'" in capsys.readouterr().err
