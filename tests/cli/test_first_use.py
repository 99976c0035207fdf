"""What a new user sees: sizes before they are made, how a compression went, and what it lost."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_vit.cli import main
from lowrank_vit.cli.command_line import VERBS, make_parser
from tests.support.commands import STANDIN, json_of, refused

FEW = ["--data", "digits", "--calibration-samples", "64"]


def typed(*arguments: str | Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, its streams no terminal."""
    command = [sys.executable, "-m", "lowrank_vit", *map(str, arguments)]
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_first_compression_in_a_real_process(tmp_path: Path) -> None:
    """By the default recipe: an estimate on the error stream; agreement, top-1, sizes and files on the standard output."""
    done = typed(
        "compress", "--model", STANDIN, "--data", "digits", "--batch-size", 32, "--calibration-samples", 96,
        "--reduction", 0.4, "--out", tmp_path / "small",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "estimate from one batch: about " in done.stderr
    out = " ".join(done.stdout.split())
    for part in ("by recipe best", "the same class as the dense model for", "times fewer multiply-accumulates"):
        assert part in out
    assert re.search(r", dense (9\d\.\d|100\.0) %", out)  # on training images
    assert f"saved to {tmp_path / 'small'}: README.md, config.json, model.safetensors, report.json" in done.stdout
    wrong = typed("plan", "--model", STANDIN, "--data", f"imagefolder:{tmp_path / 'nowhere'}")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "nowhere does not exist" in wrong.stderr


@pytest.mark.slow
def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    told = json_of(capsys, "plan", "--model", STANDIN, *FEW)
    assert [size["reduction"] for size in told["sizes"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert (told["currency"], told["recipe"]) == ("nats", "best")
    main(["plan", "--model", STANDIN, *FEW, "--recipe", "exact", "--cost", "macs"])
    text = capsys.readouterr().out
    assert "macs %" in text
    assert len(text.splitlines()) >= 10
    assert "unknown cost 'sugar'" in refused(capsys, "plan", "--model", STANDIN, *FEW, "--cost", "sugar")
    budgets = ("--recipe", "exact", "--budget", "bytes=40KiB,1MiB")
    within, beyond = json_of(capsys, "plan", "--model", STANDIN, *FEW, *budgets)["sizes"]
    assert (within["budget"], beyond["budget"]) == ("bytes=40KiB", "bytes=1MiB")
    assert 0.8 * 40 * 1024 < within["bytes"] < 40 * 1024  # the rest is the file's header
    assert "out of reach" in beyond["reason"]


@pytest.mark.slow
def test_the_smallest_model_that_loses_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "--model", STANDIN, *FEW, "--recipe", "exact", "--out", str(tmp_path / "small")]
    main([*command, "--max-loss", "5"])
    text = " ".join(capsys.readouterr().out.split())
    assert "tried, to lose at most 5 points on 129 unseen images" in text
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert f"({-100 * report['params']['reduction']:+.2f} %)" in text
    assert "at most one size" in refused(capsys, *command, "--max-loss", 5, "--reduction", "0.3,0.4")
    assert "give --reduction, --budget or --max-loss" in refused(capsys, *command)
    assert "give --held-out-samples" in refused(capsys, *command, "--max-loss", 5, "--held-out-samples", 0)


def test_help_says_what_a_verb_does_and_gives_an_example_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    for verb in VERBS:
        with pytest.raises(SystemExit):
            parser.parse_args([verb, "--help"])
        unbroken = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
        said, _, example = unbroken.partition(" example: ")
        own = next(action for action in parser._actions if action.choices and verb in action.choices).choices[verb]
        assert f" {own.description} " in said
        assert own.description.endswith(".")
        assert all(action.help for action in own._actions)
        words = shlex.split(example)
        assert words[:2] == ["lowrank-vit", verb]
        assert parser.parse_args(words[1:]).run is own.get_default("run")
