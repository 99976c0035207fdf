"""Write the command that repeats a row."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.task import EMBEDDED
from experiments.runner.plan import Options, epochs_of, jobs_of
from experiments.tables.rows import Row, Table

FOLDER = "PATH"  # to the images or the weights, which a result does not know


def commands(table: Table, plan: Mapping[str, Any]) -> dict[str, str]:
    """Write the command of every row that the plan has jobs for, by the row's name."""
    jobs = [(row, jobs_of(plan["rows"].get(row.id, {"jobs": []}))) for row in table.runnable]
    return {row.id: command(table, row, of_row) for row, of_row in jobs if of_row}


def command(table: Table, row: Row, jobs: Sequence[Job]) -> str:
    """Write the command line that repeats a row's jobs; ``PATH`` stands for a folder that the results do not name."""
    job = jobs[0]
    words = ["python", "-m", "experiments", "run", f"{table.name}/{row.id}"]
    if job.data != EMBEDDED:
        kind, _, name = job.data.partition(":")
        words += ["--data", job.data if kind == "hf" or not name else f"{kind}:{FOLDER}/{name}"]
    if job.checkpoint is not None:
        words += ["--checkpoints", FOLDER]
    words += ["--seeds", ",".join(str(item.seed) for item in jobs)]
    options: dict[str, Any] = {"limit": job.limit}
    if job.sees_images:
        changes = {name: value for name, value in job.changes.items() if row.changes.get(name) != value}
        options |= {
            "epochs": _unless(job.epochs, epochs_of(row, Options())),
            **{name: changes.get(name) for name in ("steps", "solver", "optimizer")},
            "calibration-samples": _unless(job.calibration_samples, Job.calibration_samples),
            "batch-size": _unless(job.batch_size, row.batch_size or Job.batch_size),
            "lr": _unless(job.lr, Job.lr),
            "devices": _unless(job.processes, Job.processes),
            "precision": job.precision,
        }
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value
