"""Jobs handed to submitit: its local executor, and SLURM's commands in place of which stand small scripts."""

import os
import signal
from pathlib import Path

import pytest

from experiments.jobs.job import ERROR, job_folder, read_json
from experiments.jobs.run import FAILED
from experiments.jobs.task import Task
from experiments.runner.cluster import executor_of, run_on
from tests.experiments.runner.test_pool import Notes, tasks


def echo(task: Task, threads: int | None) -> tuple[str, str]:
    """A job; seed 1 dies."""
    if task.job.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done", f"seed {task.job.seed} on {threads} threads in process {os.getpid()}"


@pytest.mark.slow
def test_jobs_of_their_own_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    view, given = Notes(), tasks(tmp_path, range(3))
    outcomes = run_on(executor_of("local", {}, given[0]), given, 3, 1, view, work=echo)
    assert outcomes == view.ends
    assert sorted(outcome.task.job.seed for outcome in outcomes) == [0, 1, 2]
    good = [outcome.said for outcome in outcomes if outcome.status == "done"]
    assert sorted(said.partition(" in ")[0] for said in good) == ["seed 0 on 1 threads", "seed 2 on 1 threads"]
    assert len(set(good)) == 2
    (failed,) = [outcome for outcome in outcomes if outcome.status == FAILED]
    assert "\n" not in failed.said
    error = read_json(job_folder(tmp_path, given[1].job) / ERROR)
    assert error is not None
    assert error["reason"].startswith("failed: job ")
