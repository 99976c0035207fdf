"""What the texts of a command line become."""

import subprocess
import sys

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


@pytest.mark.slow
def test_an_unknown_recipe_is_answered_before_timm_is_imported() -> None:
    script = (
        "import sys; from lowrank_vit.cli import main\ntry: main(sys.argv[1:])\nfinally: print('timm' in sys.modules)"
    )
    wrong = ["compress", "--model", "x", "--data", "digits", "--recipe", "exakt", "--reduction", "0.5", "--out", "x"]
    done = subprocess.run([sys.executable, "-c", script, *wrong], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "False\n", 1)
    assert "unknown recipe 'exakt': did you mean 'exact'?" in done.stderr
