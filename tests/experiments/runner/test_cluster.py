"""Jobs handed to submitit: its local executor, and SLURM's commands in place of which stand small scripts."""

import os
import signal
from pathlib import Path

import pytest

from experiments.jobs.attempt import FAILED
from experiments.jobs.results import ERROR, job_folder, read_json
from experiments.jobs.task import Task
from experiments.runner.cluster import check, run_on
from tests.experiments.runner.test_pool import Notes, tasks

SCRIPTS = {
    "sbatch": 'cp "$1" "$(dirname "$0")/submitted.sh"; sh "$(dirname "$0")/cluster" "$1" >/dev/null 2>&1 & '
    'echo "Submitted batch job 12"',
    "cluster": "for i in 0 1 2; do SLURM_JOB_ID=$((20+i)) SLURM_ARRAY_JOB_ID=12 SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 "
    'SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 sh "$1"; done',
    "srun": 'while [ "${1#-}" != "$1" ]; do case "$1" in --*=*|--unbuffered) shift;; *) shift 2;; esac; done; exec "$@"',
    "sacct": "echo 'JobID|State'; for i in 0 1 2; do echo \"12_$i|RUNNING\"; done",
    "scancel": "exit 0",
}


def echo(task: Task, threads: int | None) -> tuple[str, str]:
    """A job; seed 1 dies."""
    if task.job.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done", f"seed {task.job.seed} on {threads} threads in process {os.getpid()}"


@pytest.mark.slow
def test_jobs_of_their_own_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    view, given = Notes(), tasks(tmp_path, range(3))
    outcomes = run_on("local", {}, given, 3, 1, view, work=echo)
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


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that SLURM would have; ``submitted.sh`` is what was submitted."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_an_array_of_slurms_tasks(tmp_path: Path, slurm: Path) -> None:
    options = {"partition": "gpu", "time": "90", "cpus_per_task": "4", "gpus_per_node": "1"}
    check("slurm", options)
    given = tasks(tmp_path / "results", range(2, 5))
    outcomes = run_on("slurm", options, given, 1, None, Notes(), work=echo)
    assert [outcome.said.partition(" in ")[0] for outcome in sorted(outcomes, key=lambda own: own.task.job.seed)] == [
        f"seed {seed} on None threads" for seed in (2, 3, 4)
    ]
    submitted = (slurm / "submitted.sh").read_text()
    for line in ("--partition=gpu", "--time=90", "--cpus-per-task=4", "--gpus-per-node=1", "--array=0-2", "--nodes=1"):
        assert f"#SBATCH {line}" in submitted
