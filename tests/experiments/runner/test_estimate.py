"""How long jobs will take: by hand, by row, and on request, when nothing is run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.jobs.job import Job
from experiments.jobs.task import Task
from experiments.runner import estimate as module
from experiments.runner.estimate import Pace, expected, work_of
from lowrank_vit import Hardware

JOB = Job("m", False, "imagefolder:x", "1000+500", "svd", 0.4, 0, epochs=2, calibration_samples=100)


def task_of(job: Job, **fields: Any) -> Task:
    return Task(job, "row", "X", "table2", Path("nowhere"), "imagefolder:x", **fields)


def test_the_slower_of_arithmetic_and_loading_by_hand() -> None:
    """SVD, two epochs: 100 images of calibration, 256 held out, 2 x 500 evaluated, 2 x (3 x 1000 + 500) in training."""
    passes, loaded, steps = 100 + 256 + 1000 + 7000, 100 + 256 + 1000 + 2 * 1500, 2 * 1000 // 64
    assert work_of(JOB) == (passes, steps, loaded)
    assert work_of(replace(JOB, recipe=None, epochs=0)) == (500, 0, 500)
    overhead = module.JOB + module.STEP * steps
    task = task_of(JOB, loader_workers=4)
    arithmetic, loading = overhead + passes * 0.001, loaded * 0.1 / 4
    assert expected(task, Pace(forward=0.001, load=0.1), 4, "cuda") == pytest.approx(loading)
    assert expected(task, Pace(forward=0.1, load=0.001), 4, "cuda") == pytest.approx(overhead + passes * 0.1)
    assert expected(task, Pace(forward=0.001, load=0.1), 4, "cpu") == pytest.approx(
        arithmetic + loading
    )  # the same cores
    eight = task_of(replace(JOB, processes=8), hardware=Hardware(devices=8), loader_workers=4)
    assert expected(eight, Pace(forward=0.001, load=0.1), 32, "cuda") == pytest.approx(loading / 8)
    overhead = module.JOB + module.STEP * (2 * 1000 // 512)
    assert expected(eight, Pace(forward=0.001, load=0.0), 4, "cuda") == pytest.approx(overhead + passes * 0.001 / 8)
    on_cpu = expected(eight, Pace(forward=0.001, load=0.1), 4, "cpu")  # eight processes on a machine of four cores
    assert on_cpu == pytest.approx(overhead + passes * 0.001 + loading)


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", "table2/deit_s/svd-40", "--seeds", "0,1", "--dry-run", "--results", str(tmp_path), "--no-wandb"])
    assert stopped.value.code == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "table2/deit_s/svd-40  2 " in told.err
    assert "2 jobs to run" in told.err
    assert list(tmp_path.iterdir()) == []
