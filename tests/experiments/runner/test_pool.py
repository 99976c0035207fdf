"""Processes side by side, without what makes them slow to start, and jobs handed to submitit."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from experiments.jobs.job import ERROR, Job, job_folder, read_json
from experiments.jobs.run import FAILED, Outcome
from experiments.jobs.task import Task
from experiments.runner.cluster import executor_of, run_on
from experiments.runner.pool import run_pool


class Notes:
    """A view that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.ends: list[Outcome] = []

    def stage(self, task: Task, said: str) -> None:
        self.stages.append(f"{task.name}: {said}")

    def end(self, outcome: Outcome) -> None:
        self.ends.append(outcome)


def echo(pipe: Connection, log: Path, threads: int | None) -> None:
    """A worker that says the process it runs in; seed 1 kills it."""
    while True:
        task = pipe.recv()
        pipe.send(("stage", f"threads {threads}"))
        if task.job.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send(("done", str(os.getpid())))


def tasks(folder: Path, seeds: range) -> list[Task]:
    jobs = [Job("m", True, "digits", "1297+500", "svd", 0.4, seed) for seed in seeds]
    return [Task(job, "m/svd-40", "SVD", "table9", folder, "digits") for job in jobs]


@pytest.mark.slow
def test_processes_live_on_and_a_dead_one_takes_one_task(tmp_path: Path) -> None:
    view, given = Notes(), tasks(tmp_path, range(6))
    outcomes = run_pool(given, 2, 1, view, serve=echo)
    assert outcomes == view.ends
    assert sorted(outcome.task.job.seed for outcome in outcomes) == list(range(6))
    assert "m/svd-40 seed 3: threads 1" in view.stages
    (failed,) = [outcome for outcome in outcomes if outcome.status == FAILED]
    assert failed.task.job.seed == 1
    assert "killed, perhaps out of memory" in failed.said
    error = read_json(job_folder(tmp_path, failed.task.job) / ERROR)
    assert error is not None
    assert error["reason"].startswith("failed: the process died")
    assert len({outcome.said for outcome in outcomes if outcome.status != FAILED}) <= 3  # processes for five tasks


@pytest.mark.slow
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    class Impatient(Notes):
        def end(self, outcome: Outcome) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pool(tasks(tmp_path, range(2, 6)), 2, None, Impatient(), serve=echo)


def die_alone(task: Task, threads: int | None) -> tuple[str, str]:
    """A job; seed 1 dies."""
    if task.job.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done", f"seed {task.job.seed} on {threads} threads in process {os.getpid()}"


@pytest.mark.slow
def test_jobs_of_their_own_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    view, given = Notes(), tasks(tmp_path, range(3))
    outcomes = run_on(executor_of("local", {}, given[0]), given, 3, 1, view, work=die_alone)
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
