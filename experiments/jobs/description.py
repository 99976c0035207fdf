"""Describe a job in words, and to Weights & Biases: the config of its run, its tags, and the models that it leaves."""

from collections.abc import Mapping
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.revisions import digest, made_by
from experiments.jobs.task import Task
from experiments.tables.catalogue import tables
from experiments.tables.rows import GATES_ALONE, Row
from experiments.tracking.runs import flat, log_models
from lowrank_vit.runtime import provenance


def run_id(job: Job) -> str:
    """Name a job's run: with other revisions it is another run."""
    return f"{job.key}-{digest(made_by(job))}"


def describe(task: Task) -> dict[str, Any]:
    """Describe the run of a job, as ``tracked`` takes it.

    Its config is flat: the job, all fields of its recipe, the row it was first run for, where it comes from.
    """
    job, made = task.job, made_by(task.job)
    row = next((row for row in tables()[task.table].runnable if row.id == task.row), None)
    known = {"recipe_fields": made["recipe"]} if made["recipe"] else {}
    known |= {"architecture": row and row.architecture, "protocol": row and protocol(row, job)}
    config = {
        **job.as_json(),
        **known,
        **{name: getattr(task, name) for name in ("table", "row", "method")},
        "git": provenance.git_state() or {},
        "revisions": made["revisions"],
        "versions": provenance.versions(),
    }
    tuned = "fully fine-tuned" if job.full else "fine-tuned"
    trained = tuned if job.epochs else "distilled" if job.distill_epochs else "training-free"
    return {
        "folder": task.folder,
        "run_id": run_id(job),
        "config": flat(config),
        "group": task.table,
        "job_type": job.measure or job.recipe or "dense",
        "name": task.name,
        "tags": [job.model, "stand-in" if job.standin else "real", "dense" if job.recipe is None else trained],
    }


def log_outcome(run: Any, task: Task, measured: Mapping[str, Any]) -> None:
    """Keep a job's flat result as the run's summary, with what it saved and lost, and log the models that it leaves."""
    job, size, top1 = task.job, measured["params"], measured["top1"]
    gained = {"params/reduction": 1 - size["compressed"] / size["dense"], "status": "done"}
    if top1.get("after") is not None:
        gained["top1/drop"] = top1["dense"] - top1["after"]
    run.summary.update(flat(measured) | gained)
    left = ("compressed", "distilled", "finetuned")
    folders = [folder for name in left if (folder := task.own_folder / name).is_dir()]
    about = {"model": job.model, "dense": job.checkpoint, "recipe": job.recipe, "params": dict(measured["params"])}
    if folders or task.checkpoint is not None:
        log_models(run, f"{job.model}-{job.recipe or 'dense'}-{job.key}", about, folders, task.checkpoint)


def deviations(job: Job, row: Row) -> list[str]:
    """List in words how a job differs from its row's and the paper's settings: ``["1 epoch", "100 steps"]``."""
    if not job.sees_images:
        return []
    said = []
    if job.trained_epochs not in (0, Job.epochs):
        said.append(f"{job.trained_epochs} epoch{'s' if job.trained_epochs > 1 else ''}")
    changed = {name: value for name, value in job.changes.items() if row.changes.get(name) != value}
    said += [f"{value} steps" if name == "steps" else f"{name} {value}" for name, value in changed.items()]
    if job.lr != Job.lr:
        said.append(f"lr {job.lr:g}")
    if job.batch_size * job.processes != (row.batch_size or Job.batch_size):
        said.append(f"batch {job.batch_size * job.processes}")
    if job.calibration_samples != Job.calibration_samples:
        said.append(f"{job.calibration_samples} calibration images")
    return said


def protocol(row: Row, job: Job) -> str:
    """Name the row's protocol as it was run."""
    free = row.recipe is not None and job.trained_epochs == 0 and row.protocol != GATES_ALONE
    base = "training-free" if free else row.protocol
    base = "calibration-distilled" if job.distill_epochs else base
    return ", ".join([base, *deviations(job, row)])
