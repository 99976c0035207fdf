"""What the texts of a command line become, and a recipe as a file, which makes the same bytes again."""

import json
import sys
from pathlib import Path

import pytest

from lowrank_vit import InputError, get_recipe
from lowrank_vit.cli import main
from lowrank_vit.cli.arguments import key_value
from lowrank_vit.cli.recipe_file import options, recipe_from
from tests.support.commands import STANDIN, refused

BYTES = "model.safetensors"
WORDS = [
    "compress", "--model", STANDIN, "--data", "digits", "--recipe", "exact", "--calibration-samples", "64",
    "--batch-size", "32", "--rank-multiple", "2", "--seed", "3", "--held-out-samples=0",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    given = [str(word) for word in words]
    monkeypatch.setattr(sys, "argv", ["lowrank-vit", *given])
    main()


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_a_report_and_a_toml_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tmp_path / "first"
    run(monkeypatch, *WORDS, "--reduction", "0.3,0.4", "--out", first)
    wanted = (first / "0.4" / BYTES).read_bytes()
    assert "compress --recipe DIR/report.json" in (first / "0.4" / "README.md").read_text()
    run(monkeypatch, "compress", "--recipe", first / "0.4" / "report.json", "--out", tmp_path / "again")
    assert (tmp_path / "again" / BYTES).read_bytes() == wanted
    assert report(tmp_path / "again")["budget"]["asked"] == "reduction 0.4"
    other = ["compress", "--recipe", tmp_path / "again" / "report.json", "--seed", "4", "--out", tmp_path / "other"]
    run(monkeypatch, *other)
    assert report(tmp_path / "other")["provenance"]["seed"] == 4
    assert (tmp_path / "other" / BYTES).read_bytes() != wanted
    fields = dict(options(WORDS)) | {"--reduction": "0.4"}
    lines = [f'{name[2:].replace("-", "_")} = "{value}"' for name, value in fields.items()]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    run(monkeypatch, "compress", "--recipe", tmp_path / "small.toml", "--out", tmp_path / "third")
    assert (tmp_path / "third" / BYTES).read_bytes() == wanted


def test_a_recipe_keeps_its_fields_where_its_name_means_something_else_now(tmp_path: Path) -> None:
    changed = get_recipe("exact").but(rank_multiple=4)
    (tmp_path / "report.json").write_text(json.dumps({"recipe_fields": changed.record()}))
    assert recipe_from(str(tmp_path / "report.json")) == changed
    assert recipe_from("exact") == get_recipe("exact")


FILES = [
    ("none.json", None, "none.json does not exist"),
    ("bad.json", "{", "bad.json cannot be read"),
    ("bad.toml", "= 3", "bad.toml cannot be read"),
    ("list.json", "[]", "list.json holds no fields"),
    ("odd.toml", 'sugar = "much"', "unrecognized arguments: --sugar=much"),
    ("empty.json", '{"recipe": null, "recipe_fields": {}}', "the following arguments are required: --model"),
]


def test_a_file_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, said in FILES:
        if text is not None:
            (tmp_path / name).write_text(text)
        needed = [] if name == "empty.json" else ["--model", STANDIN, "--data", "digits", "--reduction", "0.4"]
        assert said in refused(capsys, "compress", *needed, "--recipe", tmp_path / name, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_fields_of_no_recipe_are_one_line(tmp_path: Path) -> None:
    for fields in ({"name": "x", "svd": 3}, {"mlp": "none"}, [1], {"name": "x", "allocator": "sugar"}):
        (tmp_path / "report.json").write_text(json.dumps({"recipe_fields": fields}))
        with pytest.raises(InputError):
            recipe_from(str(tmp_path / "report.json"))


def test_a_value_is_json_where_it_can_be() -> None:
    found = dict(map(key_value, ("depth=3", "class_token=false", "depths=[1, 2]", "global_pool=avg", "a=b=c")))
    assert found == {"depth": 3, "class_token": False, "depths": [1, 2], "global_pool": "avg", "a": "b=c"}
    assert found["class_token"] is False


MISTAKES = [
    ("plan --model x --data {folder}", "did you mean imagefolder:{folder}?"),
    ("plan --model x --data digits --budget 0.6", "budget 0.6 names no cost: did you mean params=0.6?"),
    ("sweep --model x --data digits --reduction 1.5", "is a share between 0 and 1, such as 0.4 for 40 %"),
    ("sweep --model x --data digits --reduction 40%", "'40%' is not a share between 0 and 1, such as 0.4 for 40 %"),
    ("plan --model deit_tiny_patch16_22 --data digits --recipe svd", "similar names: deit_tiny_patch16_224, "),
    ("list", "{models,recipes,methods,"),
]


def test_a_mistake_is_told_with_what_was_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mistake in MISTAKES:
        words, told = (text.replace("{folder}", str(tmp_path)) for text in mistake)
        assert told in refused(capsys, *words.split())
