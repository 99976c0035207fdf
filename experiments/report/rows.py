"""Add results up to the rows of ``table.json``, seed by seed, and write the command that repeats each."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.jobs.description import protocol
from experiments.jobs.job import ERROR, Job, find_result, job_folder, read_json
from experiments.jobs.task import EMBEDDED
from experiments.report.ablation import findings
from experiments.report.columns import chosen
from experiments.report.seeds import NUMBERS, SPREADS, aggregate
from experiments.report.styles import untrained
from experiments.runner.plan import Options, epochs_of, jobs_of
from experiments.tables.rows import Reported, Row, Table
from lowrank_vit import get_recipe

PATH = "PATH"  # to the images or the weights, which a result does not know
FIELDS = (  # of a row of table.json, in the order of table.csv
    "id", "architecture", "model", "method", "protocol", "status", "reason", "reduction", "cost", "epochs", "seeds", "stale",
    "source", "note", "params_printed", "top1_reported", "size_reported", "residual_error_reported", "overhead_reported",
    "base", "z", "solver", "optimizer", "budget", "bits", "target", "calibration_images", *NUMBERS, *SPREADS,
)  # fmt: skip


def table_json(folder: Path, table: Table, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``table.json``."""
    rows = []
    for row in table.rows:
        entry = plan["rows"].get(row.id, {"reason": "this row is new: run the table again", "jobs": []})
        rows.append(_reported(row) if isinstance(row, Reported) else _measured(folder, row, entry))
    columns = [column.name for column in chosen(table.columns)]
    content = {"title": plan["title"], "profile": plan["profile"], "columns": columns, "rows": rows}
    return {**content, "findings": findings(content)} if table.findings else content


def finished(results: Path, plan: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the results of every row that has any, one for each seed."""
    rows = {name: [find_result(results, job) for job in jobs_of(entry)] for name, entry in plan["rows"].items()}
    known = {name: [result for result in of_row if result is not None] for name, of_row in rows.items()}
    return {name: of_row for name, of_row in known.items() if of_row}


def _blank(row: Row | Reported) -> dict[str, Any]:
    known = {name: getattr(row, name) for name in ("id", "architecture", "method", "protocol", "source")}
    return dict.fromkeys(FIELDS) | known | {"note": row.note or None}


def _reported(row: Reported) -> dict[str, Any]:
    return _blank(row) | {"status": "reported", "params_printed": row.params, "top1_reported": row.top1}


def _measured(folder: Path, row: Row, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row to run, as far as it was run."""
    same = ("model", "cost", "params_printed", "top1_reported", "bits", "target", "calibration_images")
    known = _blank(row) | {name: getattr(row, name) for name in same} | {"reduction": row.reduction or None}
    known, jobs = {**known, **row.printed}, jobs_of(entry)
    if not jobs:
        return known | _recipe(row, row.changes) | {"status": "skipped", "reason": entry["reason"]}
    first = jobs[0]
    known |= _recipe(row, first.changes) | {
        "model": first.model,
        "method": row.method if first.epochs or first.distill_epochs else untrained(row.method),
        "protocol": protocol(row, first),
        "epochs": first.epochs,
        "reduction": first.removed or None,
        "target": row.standin_target if first.standin else row.target,
    }
    results = {job.seed: result for job in jobs if (result := find_result(folder, job)) is not None}
    errors = {job.seed: read_json(job_folder(folder, job) / ERROR) for job in jobs if job.seed not in results}
    missing = {seed: "not run yet" if error is None else error["reason"] for seed, error in errors.items()}
    if not results:
        return known | {"status": "skipped", "reason": next(iter(missing.values()))}
    reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in missing.items())
    return known | {"status": "done", "reason": reasons or None} | aggregate(results)


def _recipe(row: Row, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base and the Z of the row's recipe after the changes; the base alone where there is no Z."""
    if row.recipe is None:
        return {}
    recipe = get_recipe(row.recipe).but(**changes)
    record = recipe.record()
    known: dict[str, Any] = {"base": " + ".join(record[kind] for kind in recipe.kinds)}
    if recipe.compensation is not None:
        known |= {"z": record["compensation"], "solver": recipe.solver, "budget": record["budget"]}
        known["optimizer"] = None if recipe.solver == "closed_form" else recipe.optimizer
    return known


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
        words += ["--data", job.data if kind == "hf" or not name else f"{kind}:{PATH}/{name}"]
    if job.checkpoint is not None:
        words += ["--checkpoints", PATH]
    words += ["--seeds", ",".join(str(item.seed) for item in jobs)]
    options: dict[str, tuple[Any, Any]] = {"limit": (job.limit, None)}  # value, default
    if job.sees_images:
        changes = {name: value for name, value in job.changes.items() if row.changes.get(name) != value}
        options |= {
            "epochs": (job.epochs, epochs_of(row, Options())),
            **{name: (changes.get(name), None) for name in ("steps", "solver", "optimizer")},
            "calibration-samples": (job.calibration_samples, Job.calibration_samples),
            "batch-size": (job.batch_size, row.batch_size or Job.batch_size),
            "lr": (job.lr, Job.lr),
            "devices": (job.processes, Job.processes),
            "precision": (job.precision, None),
        }
    for name, (value, default) in options.items():
        words += [] if value == default else [f"--{name}", str(value)]
    return shlex.join(words)
