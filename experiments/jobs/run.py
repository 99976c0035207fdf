"""Take one job from its description to ``result.json``.

A finished job is not run again. One that was interrupted goes on after its last finished stage, and its fine-tuning
after the last finished epoch, as long as what makes it is still the same.
"""

import shutil
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.jobs.description import describe, log_outcome
from experiments.jobs.job import ERROR, RESULT, find_result, read_json
from experiments.jobs.revisions import is_stale, made_by
from experiments.jobs.task import CHECKPOINTS, JOB, STAGES, MissingWeightsError, Task, Tell, base_task
from experiments.tracking.runs import tracked
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import TEMPORARY, write_json
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import agreed, is_first, launched_from_outside, rank_and_world

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


def run_job(task: Task, tell: Tell) -> dict[str, Any]:
    """Run a job, or what is left of it, and write its result. ``tell`` receives the name of each stage.

    What the job builds upon is run first. Of processes with the same job one runs it, and the others wait.
    Raises ``MissingWeightsError`` where the weights cannot be had, ``InputError`` for what cannot be run.
    """
    base = base_task(task)
    if base is not None:
        run_job(base, tell)
    with _alone(task, tell):
        result = agreed(find_result(task.folder, task.job))
        whole = agreed(task.model_folder.is_dir() or not task.leaves_model)
        if result is None or is_stale(result) or not whole:
            result = _run(task, tell)
        if is_first():
            _clear(task.own_folder)
        return result


@contextmanager
def _alone(task: Task, tell: Tell) -> Iterator[None]:
    """Hold the job's lock, which ends with the process; of processes that share the job, the first one holds it."""
    from filelock import FileLock, Timeout

    path = task.folder / "locks" / f"{task.job.key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, patience, held = FileLock(path), 0.0, False
    while not held:
        if is_first():
            with suppress(Timeout):
                lock.acquire(timeout=patience)
        held = agreed(lock.is_locked)  # now and then, since those who share the job do not wait for ever
        if not held and not patience:
            tell("wait for another process with the same job")
            patience = 60.0
    try:
        yield
    finally:
        lock.release()


def _run(task: Task, tell: Tell) -> dict[str, Any]:
    from experiments.jobs.stages import perform

    folder = task.own_folder
    description = {"table": task.table, "row": task.row, "job": task.job.as_json(), **made_by(task.job)}
    if is_first():
        before = read_json(folder / JOB)
        if before is None or is_stale(before):
            shutil.rmtree(folder, ignore_errors=True)  # begun by other revisions: its half would spoil the rest
            write_json(folder / JOB, description)
        (folder / ERROR).unlink(missing_ok=True)
    with tracked(**describe(task)) if task.wandb and is_first() else nullcontext() as run:
        measured = perform(task, tell, run)
        result = {"format": 1, **description, **measured}
        if run is not None:
            log_outcome(run, task, measured)
    if is_first():
        write_json(folder / RESULT, result)
    return result


def _clear(folder: Path) -> None:
    """Remove what a job's result makes superfluous, and what killed processes left unfinished."""
    (folder / STAGES).unlink(missing_ok=True)
    for leftover in (folder / CHECKPOINTS, *folder.glob(f".*{TEMPORARY}")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@dataclass(frozen=True)
class Outcome:
    """Say how a task ended: done, failed or skipped, with its reason in one line, or the accuracy in words."""

    task: Task
    status: str
    said: str


def attempt(task: Task, tell: Tell) -> tuple[str, str]:
    """Run a task on its devices; an error becomes one line, kept for the report. Returns the status, and it in words."""
    try:
        if task.hardware.processes == 1 or task.job.measure is not None or launched_from_outside():
            return _attempt(task, tell)
        return _together(task, tell)
    except Exception as error:  # of processes that share the task: one has died, and the others were ended
        return _told(task, error)


def _attempt(task: Task, tell: Tell) -> tuple[str, str]:
    try:
        result = run_job(task, tell)
    except Exception as error:
        if rank_and_world()[1] > 1 and not isinstance(error, InputError | MissingWeightsError):
            traceback.print_exc()
            raise  # the others wait for this process: let whoever started them end them
        return _told(task, error)
    tops = [f"{top:.2f}" for top in result["top1"].values() if top is not None]
    said = f"top-1 {' > '.join(tops)} %, " if tops else ""
    return DONE, f"{said}{result['seconds']['total']:.1f} s"


def _together(task: Task, tell: Tell) -> tuple[str, str]:
    """Run a task in processes of its own, the first of which reports through a pipe."""
    here, there = Pipe(duplex=False)
    listener = threading.Thread(target=_pass_on, args=(here, tell), daemon=True)
    listener.start()
    hardware = task.hardware
    try:
        return launch(_with_pipe, task, there, devices=hardware.devices, accelerator=hardware.accelerator)
    finally:
        there.close()
        listener.join()


def _with_pipe(task: Task, pipe: Connection) -> tuple[str, str]:
    return _attempt(task, pipe.send if is_first() else lambda said: None)


def _pass_on(pipe: Connection, tell: Tell) -> None:
    with suppress(EOFError):
        while True:
            tell(pipe.recv())


def _told(task: Task, error: Exception) -> tuple[str, str]:
    """Return how a task ended that raised the error, and its first line."""
    line, kind = next(iter(str(error).strip().splitlines()), "").strip(), type(error).__name__
    if isinstance(error, MissingWeightsError):
        return ended(task, SKIPPED, line)
    traceback.print_exc()
    return ended(task, FAILED, line or kind if isinstance(error, ValueError) else f"{kind}: {line or kind}")


def ended(task: Task, status: str, said: str) -> tuple[str, str]:
    """Keep in one line why a task has no result, for the report; returns both."""
    with suppress(InputError):  # the disk is full, perhaps: then the line is all that is left to say
        if is_first():
            reason = said if status == SKIPPED else f"{status}: {said}"
            write_json(task.own_folder / ERROR, {"row": task.row, "reason": reason})
    return status, said
