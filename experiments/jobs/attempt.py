"""Run one task from its start to a line that says how it ended, in this process or in several that share it."""

import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from experiments.jobs.run import record_failure, run_job
from experiments.jobs.task import MissingWeightsError, Task, Tell
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.launch import launch
from lowrank_vit.runtime.processes import is_first, launched_from_outside, rank_and_world

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


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
        traceback.print_exc()
        return _failed(task, error)


def _attempt(task: Task, tell: Tell) -> tuple[str, str]:
    try:
        result = run_job(task, tell)
    except MissingWeightsError as error:
        said = _line(str(error))
        record_failure(task, said)
        return SKIPPED, said
    except Exception as error:
        traceback.print_exc()
        if rank_and_world()[1] > 1 and not isinstance(error, InputError):
            raise  # the others wait for this process: let whoever started them end them
        return _failed(task, error)
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


def _failed(task: Task, error: Exception) -> tuple[str, str]:
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    said = f"{name}{_line(str(error)) or type(error).__name__}"
    with suppress(InputError):  # the disk is full, perhaps: then the line is all that is left to say
        record_failure(task, f"failed: {said}")
    return FAILED, said


def _line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "").strip()
