"""Hold a job with all that it takes to run it here: paths, hardware, and the row it belongs to."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.jobs.job import Job, job_folder
from lowrank_vit import Hardware

EMBEDDED = "digits"  # the SPEC of the stand-ins' images
JOB, STAGES, CHECKPOINTS = "job.json", "stages.json", "checkpoints"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """Hold a job with all that it takes to run it here: paths, hardware, and the row it belongs to."""

    job: Job
    row: str
    method: str
    table: str
    folder: Path  # of all results
    spec: str
    checkpoint: Path | None = None
    hardware: Hardware = field(default_factory=Hardware)
    wandb: bool = True
    loader_workers: int | None = None  # of each process; None: ``ImageData``'s default

    @property
    def name(self) -> str:
        """Name the task as people call it."""
        return f"{self.row} seed {self.job.seed}"

    @property
    def own_folder(self) -> Path:
        """Name the folder of the job's files."""
        return job_folder(self.folder, self.job)

    @property
    def model_folder(self) -> Path:
        """Name the folder where the job leaves its model, if it ``leaves_model``."""
        job = self.job
        trained = "distilled" if job.distill_epochs else "finetuned" if job.epochs else "compressed"
        return self.own_folder / ("quantised" if job.bits else trained)

    @property
    def leaves_model(self) -> bool:
        """Tell whether there is a model at the end: not of the dense model's evaluation, and not of a measurement."""
        return self.job.measure is None and (self.job.recipe is not None or self.job.bits is not None)


def base_task(task: Task) -> Task | None:
    """Return the same compression without the rounding to few bits, to be run first; None where there is none."""
    if task.job.bits is None or task.job.recipe is None:
        return None
    return replace(task, job=replace(task.job, bits=None, quantizer=None))


class MissingWeightsError(Exception):
    """Report that the weights cannot be had: the row is skipped, which is not a failure."""
