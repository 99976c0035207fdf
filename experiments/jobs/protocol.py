"""Say in words how a job was run, where that differs from its row and the paper."""

from experiments.jobs.job import Job
from experiments.tables.rows import GATES_ALONE, Row


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
