"""What a new user sees: sizes before they are made, how a compression went and what it lost; and a model without classes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from lowrank_vit import load
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


NAME = "vit_tiny_patch16_224"
ARGUMENTS = {"in_chans": 1, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
GIVEN = [part for key, value in ARGUMENTS.items() for part in ("--model-args", f"{key}={value}")]
SAMPLES = ["--calibration-samples", "48", "--held-out-samples", "32"]
GENTLY = ["--vector-learning-rate", "1e-4"]
DATA = ["--data", "digits", "--workers", "0"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Those of a classifier, which a model with no classes leaves where they are."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=10, img_size=8, **ARGUMENTS)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(model.state_dict(), tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


@pytest.mark.slow
def test_the_verbs(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model = tmp_path / "small", ["--model", NAME, "--checkpoint", str(weights), *GIVEN, "--num-classes", "0"]
    main(["compress", *model, *DATA, *SAMPLES, "--max-loss", "30", "--out", str(small)])
    text = " ".join(capsys.readouterr().out.split())
    assert "reduction % points lost" in text
    assert "agreement" not in text
    assert load(small)(torch.randn(2, 1, 8, 8)).shape == (2, 16)
    teacher = ["--checkpoint", str(weights), *DATA]
    main(["compress", *model, *DATA, *SAMPLES, "--recipe", "svd", "--reduction", "0.4", "--out", str(tmp_path / "svd")])
    distil = ["distill", str(tmp_path / "svd"), *teacher, *SAMPLES, "--epochs", "2", *GENTLY]
    main([*distil, "--out", str(tmp_path / "distilled")])
    assert "in shares of the features' variance: " in capsys.readouterr().out
    report = json.loads((tmp_path / "distilled" / "report.json").read_text())
    unseen = report["distillation"]["feature_error_held_out"]
    assert unseen["after"] < unseen["before"]
    assert "no classifier (num_classes is 0), so it has no accuracy" in refused(capsys, "evaluate", small, *DATA)
    main(["evaluate", str(small), *DATA, "--limit", "20", "--dense", str(weights)])
    assert "features differ from the dense model's by " in capsys.readouterr().out
    plan = json_of(capsys, "plan", *model, *DATA, "--calibration-samples", "48")
    assert (plan["recipe"], plan["currency"]) == ("best", "shares of the features' variance")
