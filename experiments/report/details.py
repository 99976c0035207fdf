"""Tell of each row what the page shows beside the table: how to repeat it, where it comes from, its layers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.revisions import digest
from experiments.jobs.task import EMBEDDED
from experiments.report.rows import finished
from experiments.report.seeds import mean_of
from experiments.runner.plan import IMAGENET_VALIDATION, Options, epochs_of, jobs_of
from experiments.tables.rows import Row, Table

RUN = re.compile(r"run-(\d{4})(\d\d)(\d\d)_\d{6}-(?P<id>[0-9a-f]{16}-[0-9a-f]{8})")  # tracking.py names them
FOLDER = "PATH"  # to the images or the weights, which a result does not know


def details(results: Path, table: Table, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tell of every row with jobs, by its name: its ``command``, its finished ``jobs`` and its ``layers``."""
    by_row, told = finished(results, plan), {}
    runs = [path.name for path in (results / "wandb").glob("*run-*")]
    for row in table.runnable:
        jobs = jobs_of(plan["rows"].get(row.id, {"jobs": []}))
        if jobs:
            measured = by_row.get(row.id, [])
            told[row.id] = {
                "command": command(table, row, jobs),
                "jobs": [provenance(result, runs) for result in measured],
                "layers": layers(measured),
            }
    return told


def on_imagenet(plan: Mapping[str, Any]) -> bool:
    """Tell whether the accuracy was measured on the whole validation set of ImageNet, as papers print it."""
    jobs = [job for entry in plan["rows"].values() for job in jobs_of(entry)]
    return bool(jobs) and all(
        not job.standin and job.images.endswith(f"+{IMAGENET_VALIDATION}") and job.limit in (None, IMAGENET_VALIDATION)
        for job in jobs
    )


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
            "batch-size": _unless(job.batch_size, Job.batch_size),
            "lr": _unless(job.lr, Job.lr),
            "devices": _unless(job.processes, Job.processes),
            "precision": job.precision,
        }
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def _unless(value: Any, default: Any) -> Any:
    return None if value == default else value


def provenance(result: Mapping[str, Any], runs: Sequence[str]) -> dict[str, Any]:
    """Say where one result comes from. ``runs``: the folders of Weights & Biases, which tell the run's id and date."""
    origin, commit = result["provenance"], result["provenance"].get("git")
    job = Job.from_json(result["job"])
    code = (
        digest(result) if "revisions" in result else result.get("fingerprint", origin["source"])[:8]
    )  # as it was then
    run = RUN.search("\n".join(name for name in sorted(runs) if f"-{job.key}-{code}" in name))
    return {
        "key": job.key,
        "seed": job.seed,
        "commit": commit and commit["commit"] + (" with changes" if commit["dirty"] else ""),
        "versions": origin.get("versions"),
        "device": origin.get("device"),
        "date": run and "{}-{}-{}".format(*run.groups()),
        "wandb": run and run["id"],
        "seconds": result["seconds"]["total"],
    }


def layers(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average over the seeds each layer's rank (None: dense for every seed) and its errors."""
    names = dict.fromkeys(layer["name"] for result in results for layer in result.get("layers") or ())
    told = []
    for name in names:
        same = [layer for result in results for layer in result["layers"] if layer["name"] == name]
        fields = ("rank", "relative_error", "relative_error_held_out")
        means = {field: mean_of([layer[field] for layer in same if layer.get(field) is not None]) for field in fields}
        told.append({"name": name, **means})
    return told
