"""Describe a job to whoever tracks it: the id and the config of its run, its tags, and the models that it leaves."""

from collections.abc import Mapping
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.protocol import protocol
from experiments.jobs.revisions import digest, made_by
from experiments.jobs.task import Task
from experiments.tables.catalogue import tables
from experiments.tracking.runs import Models, RunDescription, flat


def run_id(job: Job) -> str:
    """Name a job's run: with other revisions it is another run."""
    return f"{job.key}-{digest(made_by(job))}"


def describe(task: Task) -> RunDescription:
    """Describe the run of a job."""
    return RunDescription(
        id=run_id(task.job),
        group=task.table,
        kind=task.job.measure or task.job.recipe or "dense",
        name=task.name,
        tags=tags(task.job),
        config=run_config(task),
        folder=task.folder,
    )


def run_config(task: Task) -> dict[str, Any]:
    """List, flat: the job, all fields of its recipe, the row it was first run for, where it comes from."""
    from lowrank_vit.runtime import provenance

    job = task.job
    made = made_by(job)
    rows = {row.id: row for row in tables()[task.table].runnable}
    row = rows.get(task.row)
    return flat(
        {
            **job.as_json(),
            **({} if made["recipe"] is None else {"recipe_fields": made["recipe"]}),
            "table": task.table,
            "row": task.row,
            "method": task.method,
            "architecture": None if row is None else row.architecture,
            "protocol": None if row is None else protocol(row, job),
            "git": provenance.git_state() or {},
            "revisions": made["revisions"],
            "versions": provenance.versions(),
        }
    )


def tags(job: Job) -> list[str]:
    """Tag a run by its model, by whether that is a stand-in, and by how it was trained."""
    tuned = "fully fine-tuned" if job.full else "fine-tuned"
    trained = tuned if job.epochs else "distilled" if job.distill_epochs else "training-free"
    trained = "dense" if job.recipe is None else trained
    return [job.model, "stand-in" if job.standin else "real", trained]


def models_of(task: Task, measured: Mapping[str, Any]) -> Models:
    """Describe the models that a job leaves."""
    job, names = task.job, ("compressed", "distilled", "finetuned")
    return Models(
        name=f"{job.model}-{job.recipe or 'dense'}-{job.key}",
        about={"model": job.model, "dense": job.checkpoint, "recipe": job.recipe, "params": dict(measured["params"])},
        folders=[folder for name in names if (folder := task.own_folder / name).is_dir()],
        checkpoint=task.checkpoint,
    )
