"""Describe a job to Weights & Biases: the id and the config of its run, its tags, and the models that it leaves."""

from collections.abc import Mapping
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.protocol import protocol
from experiments.jobs.revisions import digest, made_by
from experiments.jobs.task import Task
from experiments.tables.catalogue import tables
from experiments.tracking.runs import flat, log_models, log_result


def run_id(job: Job) -> str:
    """Name a job's run: with other revisions it is another run."""
    return f"{job.key}-{digest(made_by(job))}"


def describe(task: Task) -> dict[str, Any]:
    """Describe the run of a job, as ``tracked`` takes it.

    Its config is flat: the job, all fields of its recipe, the row it was first run for, where it comes from.
    """
    from lowrank_vit.runtime import provenance

    job, made = task.job, made_by(task.job)
    row = next((row for row in tables()[task.table].runnable if row.id == task.row), None)
    config = {
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
    return {
        "folder": task.folder,
        "run_id": run_id(job),
        "config": flat(config),
        "group": task.table,
        "job_type": job.measure or job.recipe or "dense",
        "name": task.name,
        "tags": tags(job),
    }


def tags(job: Job) -> list[str]:
    """Tag a run by its model, by whether that is a stand-in, and by how it was trained."""
    tuned = "fully fine-tuned" if job.full else "fine-tuned"
    trained = tuned if job.epochs else "distilled" if job.distill_epochs else "training-free"
    return [job.model, "stand-in" if job.standin else "real", "dense" if job.recipe is None else trained]


def log_outcome(run: Any, task: Task, measured: Mapping[str, Any]) -> None:
    """Log a job's result, and the models that it leaves."""
    job = task.job
    log_result(run, measured)
    folders = [
        folder for name in ("compressed", "distilled", "finetuned") if (folder := task.own_folder / name).is_dir()
    ]
    about = {"model": job.model, "dense": job.checkpoint, "recipe": job.recipe, "params": dict(measured["params"])}
    if folders or task.checkpoint is not None:
        log_models(run, f"{job.model}-{job.recipe or 'dense'}-{job.key}", about, folders, task.checkpoint)
