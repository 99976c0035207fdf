"""Hand jobs to submitit, one each: an array of SLURM's tasks, or processes of this machine that live on their own."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from experiments.jobs.run import FAILED, Outcome, attempt, ended
from experiments.jobs.task import Task
from experiments.runner.view import LiveView
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import require
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.registry import unknown

WEEK = 7 * 24 * 60  # minutes: submitit ends a local job after two, unless told
POLL = 1.0  # seconds
Work = Callable[[Task, int | None], tuple[str, str]]


def check(launcher: str | None, options: Mapping[str, str]) -> None:
    """Raise ``InputError``, before anything is planned, for what is missing: submitit, SLURM, or one of its options."""
    if launcher != "slurm" and options:
        raise InputError("--slurm says how SLURM is to run the jobs: give --launcher slurm, too")
    if launcher is None:
        return
    require("--launcher", "submitit")
    if launcher == "local":
        return
    import submitit

    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise InputError(f"there is no {missing[0]} here: run --launcher slurm on a login node of a SLURM cluster")
    known = submitit.SlurmExecutor._valid_parameters()
    for name in options:
        if name not in known:
            raise unknown("option of --slurm", name, known)
    if "time" not in options:
        raise InputError("a job needs a time limit: give --slurm time=MINUTES, enough for the longest row")


def run_on(
    executor: Any, tasks: Sequence[Task], room: int, threads: int | None, view: LiveView, work: Work | None = None
) -> list[Outcome]:
    """Run every task as a job of its own, ``room`` at a time.

    ``work`` is what a job does (``run_one``). A job that dies takes one task with it. A ``KeyboardInterrupt`` cancels the
    jobs; what is on disk is whole, and the next run goes on from there.
    """
    left, outcomes = list(tasks), []
    running: list[tuple[Task, Any]] = []
    try:
        while left or running:
            batch, left = left[: room - len(running)], left[room - len(running) :]
            if batch:
                running += zip(batch, executor.map_array(work or run_one, batch, [threads] * len(batch)), strict=True)
            over = [(task, job) for task, job in running if job.done()]
            running = [pair for pair in running if pair not in over]
            for task, job in over:
                outcomes.append(_outcome(task, job))
                view.end(outcomes[-1])
            if not over:
                time.sleep(POLL)
    finally:
        for _, job in running:
            job.cancel(check=False)
    return outcomes


def run_one(task: Task, threads: int | None) -> tuple[str, str]:
    """Run a job: the task, with the processes that SLURM has started for it, or that it starts itself."""
    if threads is not None:
        torch.set_num_threads(threads)
    print(f"== {task.name} {task.job.key}", flush=True)
    return launch(attempt, task, partial(print, flush=True), accelerator=task.hardware.accelerator)


def executor_of(launcher: str, options: Mapping[str, str], task: Task) -> Any:
    """Return what starts jobs like the task: in SLURM's queue, or on this machine."""
    import submitit

    folder, hardware = task.folder.absolute() / "logs" / "cluster" / "%j", task.hardware
    if launcher == "local":
        local = submitit.LocalExecutor(folder)
        local.update_parameters(timeout_min=WEEK, gpus_per_node=torch.cuda.device_count())
        return local
    given: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    slurm = submitit.SlurmExecutor(folder)
    layout = {"nodes": hardware.num_nodes, "ntasks_per_node": hardware.devices}
    try:
        slurm.update_parameters(**{"job_name": f"lowrank_vit-{task.table}", **layout, **given})
    except (ValueError, TypeError) as error:
        raise InputError(f"submitit refuses these options of --slurm: {str(error).splitlines()[0]}") from None
    return slurm


def _outcome(task: Task, job: Any) -> Outcome:
    """Return what the job returned; where it died, keep the reason for the report."""
    from submitit.core.utils import UncompletedJobError

    try:
        return Outcome(task, *job.result())
    except UncompletedJobError as error:  # also where the function raised
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = f"job {job.job_id} died: {lines[-1].strip() if lines else 'without a word'} (log: {job.paths.stderr})"
        return Outcome(task, *ended(task, FAILED, reason))
