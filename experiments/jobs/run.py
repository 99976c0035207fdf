"""Take one job from its description to ``result.json``.

A finished job is not run again. One that was interrupted goes on after its last finished stage, and its fine-tuning
after the last finished epoch, as long as what makes it is still the same.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from experiments.jobs.description import describe, log_outcome
from experiments.jobs.results import ERROR, RESULT, find_result, read_json
from experiments.jobs.revisions import is_stale, made_by
from experiments.jobs.task import CHECKPOINTS, JOB, STAGES, Task, Tell, base_task
from experiments.tracking.runs import tracked
from lowrank_vit.runtime.files import TEMPORARY
from lowrank_vit.runtime.processes import agreed, is_first


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
    from lowrank_vit.runtime.files import write_json

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


def record_failure(task: Task, reason: str) -> None:
    """Keep the one-line reason, for the report."""
    from lowrank_vit.runtime.files import write_json

    if is_first():
        write_json(task.own_folder / ERROR, {"row": task.row, "reason": reason})
