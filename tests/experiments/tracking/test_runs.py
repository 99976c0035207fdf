"""Runs of Weights & Biases, read back with its own reader, and the workspace, whose names are those of real runs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.jobs.description import run_id
from experiments.jobs.job import Job
from experiments.jobs.revisions import digest, made_by
from experiments.jobs.run import run_job
from experiments.jobs.task import Task
from experiments.tracking.runs import STEPS_OF_AN_ATTEMPT, flat
from lowrank_vit import Hardware


@dataclass
class OfflineRun:
    """What is in one folder ``offline-run-...``."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)  # metric: what it is drawn over
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        """W&B's own steps."""
        return [row["_step"] for row in self.history]

    def curve(self, x: str, y: str) -> list[tuple[Any, Any]]:
        """A metric over its axis."""
        return [(row[x], row[y]) for row in self.history if y in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table, from the file that the run keeps of it."""
        (path,) = [row[f"{name}.path"] for row in self.history if f"{name}.path" in row]
        content = json.loads((self.folder / "files" / path).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def read_run(folder: Path) -> OfflineRun:
    """Every record of a run, in the order written."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = OfflineRun(folder)
    for record in map(json.loads, lines):
        content = record.get(record["type"], {})
        match record["type"]:
            case "run":
                found.run = content
                found.config |= content["config"]["update"]
            case "config":
                found.config |= content["update"]
            case "summary":
                found.summary |= content.get("update", {})
            case "history":
                found.history.append(content["item"])
            case "metric":
                name = content.get("name") or content.get("glob_name")
                found.axes[name] = content.get("step_metric", "")
            case "artifact":
                found.artifacts.append(content)
            case "exit":
                found.exit_code = content.get("exit_code", 0)
    return found


def read_runs(results: Path) -> list[OfflineRun]:
    """All runs under a folder of results, in the order in which they began."""
    return [read_run(folder) for folder in sorted((results / "wandb").glob("offline-run-*"))]


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


def stop_at(text: str) -> Callable[[str], None]:
    def tell(stage: str) -> None:
        if text in stage:
            raise ZeroDivisionError("a power cut")

    return tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, dict[str, Any], OfflineRun]:
    """A job with everything, its result and its run: Z by a gradient solver, Algorithm 1, fine-tuning."""
    folder = tmp_path_factory.mktemp("whole")
    own = task(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb"))
        result = run_job(own, quiet)
    (run,) = read_runs(folder)
    return own, result, run


@pytest.mark.slow
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


@pytest.mark.slow
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


def panels(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and settings of every panel."""
    for section in description["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            yield panel["viewType"], panel["config"]


@pytest.mark.slow
def test_every_name_is_one_of_a_run(
    whole: tuple[Task, dict[str, Any], OfflineRun], capsys: pytest.CaptureFixture[str]
) -> None:
    *_, found = whole
    with pytest.raises(SystemExit) as stop:
        main(["workspace", "--entity", "somebody"])
    assert not stop.value.code
    description = json.loads(capsys.readouterr().out)
    kinds: dict[str, int] = {}
    logged = {name for row in found.history for name in row}
    for kind, config in panels(description):
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind == "Scatter Plot":
            for axis in (config["xAxis"], config["yAxis"]):
                section, _, name = axis.partition(":")
                assert section == "summary"
                assert isinstance(found.summary[name], int | float), axis
        elif kind == "Bar Chart":
            assert config["groupBy"].removesuffix(".value") in found.config
            assert all(isinstance(found.summary[name], int | float) for name in config["metrics"])
        elif kind == "Run History Line Plot":
            names = set(config.get("metrics", []))
            if "metricRegex" in config:
                names |= {name for name in logged if re.search(config["metricRegex"], name)}
                assert len(names) == 11  # layers with a Z, and not the axis
            assert names
            for name in names:
                assert found.curve(config["xAxis"], name), name
        else:
            assert kind == "Weave"
            assert '"layers"' in json.dumps(config)
            assert found.table("layers")
    assert kinds == {"Scatter Plot": 4, "Bar Chart": 6, "Run History Line Plot": 11, "Weave": 1}
