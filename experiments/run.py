"""One job from its description to ``result.json``.

A finished job is not run again. One that was interrupted goes on after its last finished stage, and its fine-tuning
after the last finished epoch, as long as the package's source is still the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.registry import Job
from experiments.results import ERROR, RESULT, find_result, is_stale, job_folder, read_json
from experiments.tracking import log_result, tracked
from lowrank_vit.files import TEMPORARY
from lowrank_vit.parallel import agreed, is_first

JOB, STAGES, CHECKPOINTS = "job.json", "stages.json", "checkpoints"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Hardware:
    """What goes to Lightning; none of it determines a result but ``precision`` and the number of processes."""

    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    precision: str | None = None

    @property
    def processes(self) -> int:
        """All that share a step."""
        return self.devices * self.num_nodes

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that every run under Lightning takes."""
        names = ("devices", "num_nodes", "strategy", "accelerator")
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> str:
        """The device of what does not run under Lightning, as ``resolve_device`` takes it."""
        names = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps"}
        return names.get(self.accelerator, "auto")


@dataclass(frozen=True)
class Task:
    """A job with all that it takes to run it here: paths, hardware, and the row it belongs to."""

    job: Job
    row: str
    method: str
    table: str
    folder: Path  # of all results
    spec: str
    checkpoint: Path | None = None
    hardware: Hardware = field(default_factory=Hardware)
    wandb: bool = True

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.row} seed {self.job.seed}"

    @property
    def own_folder(self) -> Path:
        """The folder of the job's files."""
        return job_folder(self.folder, self.job)

    @property
    def model_folder(self) -> Path:
        """Where the job leaves its model, if it ``leaves_model``."""
        job = self.job
        trained = "distilled" if job.distill_epochs else "finetuned" if job.epochs else "compressed"
        return self.own_folder / ("quantised" if job.bits else trained)

    @property
    def leaves_model(self) -> bool:
        """Whether there is a model at the end: not of the dense model's evaluation, and not of a measurement."""
        return self.job.measure is None and (self.job.recipe is not None or self.job.bits is not None)


def base_task(task: Task) -> Task | None:
    """The same compression without the rounding to few bits, which has to be done before; None where there is none."""
    if task.job.bits is None or task.job.recipe is None:
        return None
    return replace(task, job=replace(task.job, bits=None))


class MissingWeightsError(Exception):
    """The weights cannot be had: the row is skipped, which is no failure."""


def run_job(task: Task, tell: Tell) -> dict[str, Any]:
    """Run a job, or what is left of it, and write its result. ``tell`` is told the stage.

    What the job builds upon is run first. Of processes with the same job one runs it, and the others wait.
    Raises ``MissingWeightsError`` where the weights cannot be had, ``InputError`` for what cannot be run.
    """
    from lowrank_vit.provenance import source_hash

    base = base_task(task)
    if base is not None:
        run_job(base, tell)
    with _alone(task, tell):
        found = agreed(find_result(task.folder, task.job))
        whole = agreed(task.model_folder.is_dir() or not task.leaves_model)
        if found is None or is_stale(found, source_hash()) or not whole:
            found = _run(task, tell)
        if is_first():
            _clear(task.own_folder)
        return found


@contextmanager
def _alone(task: Task, tell: Tell) -> Iterator[None]:
    """Hold the job's lock, which goes with the process; of processes that share the job the first one holds it."""
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
    from experiments.stages import perform
    from lowrank_vit.files import write_json
    from lowrank_vit.provenance import source_hash

    folder = task.own_folder
    description = {"table": task.table, "row": task.row, "source": source_hash(), "job": task.job.as_json()}
    if is_first():
        before = read_json(folder / JOB)
        if before is None or before.get("source") != description["source"]:
            shutil.rmtree(folder, ignore_errors=True)  # begun by another source: its half would spoil the rest
            write_json(folder / JOB, description)
        (folder / ERROR).unlink(missing_ok=True)
    with tracked(task) if task.wandb and is_first() else nullcontext() as run:
        measured = perform(task, tell, run)
        result = {"format": 1, "table": task.table, "row": task.row, "job": task.job.as_json(), **measured}
        log_result(run, task, measured)
    if is_first():
        write_json(folder / RESULT, result)
    return result


def _clear(folder: Path) -> None:
    """Remove what a job's result makes needless, and what killed processes left unfinished."""
    (folder / STAGES).unlink(missing_ok=True)
    for leftover in (folder / CHECKPOINTS, *folder.glob(f".*{TEMPORARY}")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def record_failure(task: Task, reason: str) -> None:
    """Keep the one-line reason, for the report."""
    from lowrank_vit.files import write_json

    if is_first():
        write_json(task.own_folder / ERROR, {"row": task.row, "reason": reason})
