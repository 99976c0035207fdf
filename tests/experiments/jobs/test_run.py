"""Jobs on a stand-in: the stages, going on after an interruption or a kill, what is run again, and fewer tokens."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.__main__ import main
from experiments.jobs import stages
from experiments.jobs.job import Job, find_result
from experiments.jobs.revisions import made_by
from experiments.jobs.run import Outcome, attempt, run_job
from experiments.jobs.task import Task
from experiments.runner import campaign
from experiments.runner.pool import run_here
from lowrank_vit import Hardware, InputError, load
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.token_block import TokenBlock
from tests.support.sources import ROOT

TINY = {"epochs": 2, "limit": 64, "calibration_samples": 64, "held_out_samples": 32}
SMALL = shlex.split("--seeds 0 --epochs 1 --limit 64 --calibration-samples 64 --no-wandb --workers 1")


def task(folder: Path, recipe: str | None = "paper", **fields: Any) -> Task:
    changes = {"steps": 3} if recipe == "paper" else {}
    job = Job("digits_deit_small", True, "digits", "1297+500", recipe, 0.4, 0, changes=changes, **{**TINY, **fields})
    return Task(job, "deit_s/x", "X", "table2", folder, "digits", hardware=Hardware(accelerator="cpu"), wandb=False)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Jobs run in this process; returns what was run."""
    ran: list[Task] = []

    def run(tasks: Sequence[Task], workers: int, threads: int | None, view: Any) -> list[Outcome]:
        ran.extend(tasks)
        return run_here(tasks, view)

    monkeypatch.setattr(campaign, "run_pool", run)
    return ran


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_a_job_from_end_to_end(tmp_path: Path) -> None:
    own, said = task(tmp_path), []
    result = run_job(own, said.append)
    assert json.loads((own.own_folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert find_result(tmp_path, own.job) is not None
    assert Job.from_json(result["job"]) == own.job
    assert result["params"]["compressed"] <= 0.6 * result["params"]["dense"]
    assert result["n"] == 64
    assert all(0 <= result["top1"][when] <= 100 for when in ("dense", "before", "after"))
    assert 0 < result["relative_error"] < 1
    assert 0 < result["relative_error_held_out"] < 1
    assert result["z"]["kind"] == "low_rank"
    assert 0 < result["z"]["overhead"] < 0.1  # a whole rank of layers this small is more than 5 %
    assert 0 < result["z"]["loss"] < result["z"]["loss_before"] < 1
    assert result["z"]["gap"] > 0.001  # three steps do not get there
    assert 0 < result["trainable_share"] < 0.2
    assert result["seconds"]["total"] > 0
    assert {name: result[name] for name in ("recipe", "revisions")} == made_by(own.job)
    assert {"seed", "source", "git", "versions", "command"} <= result["provenance"].keys()
    assert parameter_count(load(own.own_folder / "finetuned")) == result["params"]["compressed"]
    assert not (own.own_folder / "checkpoints").exists()
    assert not (own.own_folder / "stages.json").exists()
    assert any("fine-tune, epoch 2 of 2" in text for text in said)


class StoppedError(RuntimeError):
    """In place of a power cut."""


def stop_at(text: str, said: list[str]) -> Callable[[str], None]:
    def tell(stage: str) -> None:
        said.append(stage)
        if text in stage:
            raise StoppedError

    return tell


@pytest.mark.slow
def test_an_interrupted_job_goes_on(tmp_path: Path) -> None:
    own, said = task(tmp_path / "stopped", epochs=3), []
    for place in ("evaluate before", "fine-tune, epoch 2 of 3"):  # the checkpoint of the first epoch is there
        with pytest.raises(StoppedError):
            run_job(own, stop_at(place, []))
    assert (own.own_folder / "checkpoints" / "last.ckpt").exists()
    result = run_job(own, said.append)
    assert not any("compress" in text or "before" in text for text in said)
    told = [text.partition(":")[0] for text in said if text.startswith("fine-tune,")]
    assert told == ["fine-tune, epoch 2 of 3", "fine-tune, epoch 3 of 3"]
    whole = task(tmp_path / "whole", epochs=3)
    assert run_job(whole, lambda text: None)["top1"] == result["top1"]
    one, other = (load_file(place.own_folder / "finetuned" / "model.safetensors") for place in (own, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_finished_row_is_not_run_again(
    tmp_path: Path, in_process: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("run", "table2/deit_s/svd-40", *SMALL, "--results", str(tmp_path))
    assert exit_code(*command) == 0
    assert [task.row for task in in_process] == ["deit_s/svd-40"]
    folder = tmp_path / "table2"
    for name in ("table.md", "table.csv", "table.json", "accuracy_vs_params.png"):
        assert (folder / name).stat().st_size > 0
    table = json.loads((folder / "table.json").read_text())
    rows = {row["id"]: row for row in table["rows"]}
    assert rows["deit_s/svd-40"]["status"] == "done"
    assert rows["deit_s/svd-40"]["protocol"] == "partial-ft, 1 epoch, 64 calibration images"
    assert rows["deit_b/svd-40"]["reason"] == "not run yet"
    assert "not ImageNet" in capsys.readouterr().out

    assert exit_code(*command) == 0
    assert len(in_process) == 1
    (path,) = tmp_path.glob("jobs/*/result.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "revisions": {"evaluate": 0}}))
    assert exit_code(*command) == 0
    assert len(in_process) == 1
    assert "--rerun-stale runs them again" in capsys.readouterr().err
    assert exit_code("report", "table2", "--results", str(tmp_path)) == 0
    assert "stale" in capsys.readouterr().out
    assert exit_code(*command, "--rerun-stale") == 0
    assert len(in_process) == 2


@pytest.mark.slow
def test_a_failed_job_is_reported_and_the_rest_runs(
    tmp_path: Path, in_process: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compress = stages.compress

    def fail(model: Any, images: Any, recipe: Any, *args: Any, **options: Any) -> Any:
        if recipe.name == "exact":
            raise InputError("a layer has NaN")
        return compress(model, images, recipe, *args, **options)

    monkeypatch.setattr(stages, "compress", fail)
    rows = ["deit_s/svd-40", "deit_s/ours-paper-40", "deit_s/ours-exact-40"]
    targets = [f"table2/{row}" for row in rows]
    assert exit_code("run", *targets, *SMALL, "--epochs", "0", "--steps", "3", "--results", str(tmp_path)) == 1
    assert [task.row for task in in_process] == rows
    error = capsys.readouterr().err
    assert "1 of 3 jobs failed, deit_s/ours-exact-40 seed 0 for one: a layer has NaN" in error
    found = {row["id"]: row for row in json.loads((tmp_path / "table2" / "table.json").read_text())["rows"]}
    assert found["deit_s/ours-exact-40"]["reason"] == "failed: a layer has NaN"
    assert found["deit_s/ours-paper-40"]["protocol"].startswith("training-free, 3 steps")
    assert found["deit_s/svd-40"]["method"] == "Vanilla SVD"
    assert found["deit_s/svd-40"]["protocol"].startswith("training-free")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run tabel2", "did you mean 'table2'"),
        ("run table2 --data nonsense", "nonsense"),
        ("run table2 --devices 2 --workers 2", "leave out --devices"),
        ("report table2", "has no results"),
    ],
)
def test_bad_input_is_one_line(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*words.split(), "--results", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_job_on_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """The same number of images a step, so the same result to rounding; the first process alone writes and tells."""
    alone, said = task(tmp_path / "alone", "best"), []
    two = task(tmp_path / "two", "best", processes=2, batch_size=32)
    two = dataclasses.replace(two, hardware=Hardware(devices=2, accelerator="cpu"))
    assert attempt(two, said.append)[0] == "done"
    one, other = run_job(alone, lambda text: None), find_result(two.folder, two.job)
    assert other is not None
    assert [text for text in said if text.startswith("fine-tune")][-1].startswith("fine-tune, epoch 2 of 2")
    assert [text for text in said if text == "compress by best"] == ["compress by best"]
    for when, top1 in one["top1"].items():
        assert other["top1"][when] == pytest.approx(top1, abs=100 / 64 + 1e-6), when  # an image may tip over
    for name in ("dense", "before", "after"):
        assert other["loss"][name] == pytest.approx(one["loss"][name], rel=1e-3), name
    assert other["params"] == one["params"]
    assert sorted(path.name for path in two.own_folder.iterdir()) == sorted(
        path.name for path in alone.own_folder.iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "svd"])
def test_a_job_with_fewer_tokens_keeps_within_its_multiply_accumulates(recipe: str | None, tmp_path: Path) -> None:
    tokens = {"rule": "tome", "macs": 0.6}
    done = task(tmp_path, recipe=recipe, epochs=0, cost="macs", tokens=tokens)
    done = replace(done, job=replace(done.job, reduction=0.2 if recipe else 0.0))
    result = run_job(done, lambda text: None)
    macs, params = result["macs"], result["params"]
    assert 0.45 * macs["dense"] < macs["compressed"] <= 0.6 * macs["dense"]
    assert (params["compressed"] < params["dense"]) == (recipe is not None)
    assert result["top1"]["before"] is None
    assert 0 < result["top1"]["after"] != result["top1"]["dense"]
    if recipe is not None:  # what was compressed is kept; tokens become fewer each time it is used
        kept = load(done.own_folder / "compressed")
        assert not any(isinstance(module, TokenBlock) for module in kept.modules())


@pytest.mark.slow
def test_the_speed_of_a_job_is_measured_in_turns(tmp_path: Path) -> None:
    done = task(tmp_path, recipe="svd", epochs=0, timed=True)
    speed = run_job(done, lambda text: None)["speed"]
    assert set(speed) == {"threads", "device", "clock", "1", "8"}
    assert speed["clock"] == "cpu"  # jobs run beside each other
    assert all(0.05 < speed[batch] < 20 for batch in ("1", "8"))


@pytest.mark.slow
def test_a_job_killed_at_every_write_ends_with_the_same_bytes() -> None:
    command = [sys.executable, "-m", "tests.support.kills", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.match(r"(\d+) kills, one before every write: the same (\d+) files, byte for byte", done.stdout)
    assert found, done.stdout
    kills, files = map(int, found.groups())
    # job, dense, moments, decomposition, Z twice, its checkpoints, model, two epochs, model, scores, result; deletions
    assert kills >= 20
    assert files >= 11


@pytest.mark.slow
def test_a_figure_from_end_to_end(tmp_path: Path, in_process: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--seeds", "0", "--calibration-samples", "32", "--no-wandb", "--workers", "1"]
    command = ["run", "figure1/deit_b", *small, "--results", str(tmp_path)]
    for _ in range(2):  # the second time there is nothing left to run
        assert exit_code(*command) == 0
    said = capsys.readouterr().err
    ran = json.loads((tmp_path / "figure1" / "plan.json").read_text())["command"]
    assert shlex.split(ran) == ["python", "-m", "experiments", *command]
    assert said.count("jobs to run") == 1
    assert "figure1.json, figure1.png, figure1.pdf" in said
    assert (tmp_path / "figure1" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure1" / "figure1.png").stat().st_size > 20_000
    assert (tmp_path / "figure1" / "figure1.pdf").read_bytes().startswith(b"%PDF")
    content = json.loads((tmp_path / "figure1" / "figure1.json").read_text())
    (result,) = content["rows"]["deit_b/energy"]
    assert find_result(tmp_path, Job.from_json(result["job"])) == result
    assert result["measured"]["images"]["calibration"] == 32
    assert result["seconds"]["total"] > 0
    assert result["provenance"]["calibration"]["samples"] == 32
