"""Runs of Weights & Biases, read back with its own reader: what a job leaves there, alone, interrupted, on two processes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.jobs.description import run_id
from experiments.jobs.job import Job
from experiments.jobs.revisions import digest, made_by
from experiments.jobs.run import run_job
from experiments.jobs.task import Task
from experiments.tracking.runs import STEPS_OF_AN_ATTEMPT, flat
from lowrank_vit import Hardware
from tests.experiments.support.offline_runs import OfflineRun, read_runs

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))


def task(folder: Path, row: str = "deit_s/ours-paper-40", recipe: str | None = "paper", **fields: Any) -> Task:
    changes = {"steps": 60} if recipe == "paper" else {}
    tiny: dict[str, Any] = {"epochs": 1, "limit": 64, "calibration_samples": 64, "held_out_samples": 32, **fields}
    job = Job("digits_deit_small", True, "digits", "1297+500", recipe, 0.4, 0, changes=changes, **tiny)
    return Task(job, row, "Ours (paper)", "table2", folder, "digits", hardware=Hardware(accelerator="cpu"))


def quiet(said: str) -> None:
    """Nobody is told."""


def alone() -> dict[str, str]:
    """The environment of a process that is to start W&B's service itself, as a worker does."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def stop_at(text: str) -> Callable[[str], None]:
    def tell(stage: str) -> None:
        if text in stage:
            raise ZeroDivisionError("a power cut")

    return tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, dict[str, Any], OfflineRun]:
    """A job from end to end, its result and its run."""
    folder = tmp_path_factory.mktemp("whole")
    own = task(folder)
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    result = run_job(own, quiet)
    (run,) = read_runs(folder)
    return own, result, run


def test_a_run_says_what_was_run(whole: tuple[Task, dict[str, Any], OfflineRun]) -> None:
    own, result, found = whole
    made = made_by(own.job)
    assert found.exit_code == 0
    assert found.run["project"] == "lowrank-vit"
    assert found.run["run_group"] == "table2"
    assert found.run["job_type"] == "paper"
    assert found.run["display_name"] == "deit_s/ours-paper-40 seed 0"
    assert found.run["run_id"] == run_id(own.job) == f"{own.job.key}-{digest(made)}"
    assert set(found.run["tags"]) == {"digits_deit_small", "stand-in", "fine-tuned"}
    for name, value in flat(own.job.as_json()).items():
        assert found.config[name] == value, name
    about = {"row": own.row, "method": own.method, "table": "table2", "architecture": "DeiT-S"}
    about |= {"recipe_fields/solver": "minibatch", "recipe_fields/steps": 60, "recipe_fields/allocator": "paper"}
    about |= {f"revisions/{part}": revision for part, revision in made["revisions"].items()}
    about |= {"protocol": "partial-ft, 1 epoch, 60 steps, 64 calibration images"}
    about |= {f"versions/{name}": version for name, version in result["provenance"]["versions"].items()}
    for name, value in about.items():
        assert found.config[name] == value, name
    assert found.config["git/commit"] == result["provenance"]["git"]["commit"]
    assert not any(isinstance(value, dict) and value for value in found.config.values())


def test_a_resumed_job_goes_on_in_its_run(tmp_path: Path) -> None:
    own = task(tmp_path, "deit_s/svd-40", "svd", epochs=2)
    with pytest.raises(ZeroDivisionError):
        run_job(own, stop_at("fine-tune, epoch 1 of 2"))
    with pytest.raises(ZeroDivisionError):
        run_job(own, stop_at("fine-tune, epoch 2 of 2"))
    run_job(own, quiet)
    first, second, third = attempts = read_runs(tmp_path)
    assert {run.run["run_id"] for run in attempts} == {run_id(own.job)}
    assert first.config == second.config == third.config
    assert [run.exit_code for run in attempts] == [1, 1, 0]
    assert [run.summary["status"] for run in attempts] == ["failed", "failed", "done"]
    assert first.summary["reason"] == "ZeroDivisionError: a power cut"
    steps = [step for run in attempts for step in run.steps]
    assert steps == sorted(set(steps))  # later ones follow on
    assert second.steps[0] == STEPS_OF_AN_ATTEMPT
    assert len(first.table("layers")) == 12
    for run in attempts[1:]:  # each says it anew
        assert run.table("layers") == first.table("layers")
        assert run.curve("layers/index", "layers/error") == first.curve("layers/index", "layers/error")
    trained = [point for run in attempts for point in run.curve("trainer/global_step", "val_top1")]
    assert [step for step, _ in trained] == [20, 41]
