"""Add results up to the rows of ``table.json``, seed by seed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.protocol import protocol
from experiments.jobs.results import ERROR, find_result, job_folder, read_json
from experiments.report.ablation import findings
from experiments.report.columns import chosen
from experiments.report.seeds import NUMBERS, SPREADS, aggregate
from experiments.report.styles import untrained
from experiments.runner.plan import jobs_of
from experiments.tables.rows import Reported, Row, Table
from lowrank_vit import get_recipe

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
    names = {"id": row.id, "architecture": row.architecture, "method": row.method, "protocol": row.protocol}
    return dict.fromkeys(FIELDS) | names | {"source": row.source, "note": row.note or None}


def _reported(row: Reported) -> dict[str, Any]:
    return _blank(row) | {"status": "reported", "params_printed": row.params, "top1_reported": row.top1}


def _measured(folder: Path, row: Row, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row to run, as far as it was run."""
    known = _blank(row) | {
        "model": row.model,
        "reduction": row.reduction or None,
        "cost": row.cost,
        "params_printed": row.params_printed,
        "top1_reported": row.top1_reported,
        "bits": row.bits,
        "target": row.target,
        "calibration_images": row.calibration_images,
        **row.printed,
    }
    jobs = jobs_of(entry)
    if not jobs:
        return known | _recipe(row, row.changes) | {"status": "skipped", "reason": entry["reason"]}
    first = jobs[0]
    trained = first.epochs or first.distill_epochs
    known |= _recipe(row, first.changes) | {
        "model": first.model,
        "method": row.method if trained else untrained(row.method),
        "protocol": protocol(row, first),
        "epochs": first.epochs,
    }
    known |= {"reduction": first.removed or None, "target": row.standin_target if first.standin else row.target}
    results = {job.seed: result for job in jobs if (result := find_result(folder, job)) is not None}
    missing = [_missing(folder, job) for job in jobs if job.seed not in results]
    if not results:
        return known | {"status": "skipped", "reason": missing[0].partition(": ")[2]}
    return known | {"status": "done", "reason": "; ".join(missing) or None} | aggregate(results)


def _recipe(row: Row, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base and the Z of the row's recipe after the changes; the base alone where there is no Z."""
    if row.recipe is None:
        return {}
    recipe = get_recipe(row.recipe).but(**changes)
    record = recipe.record()
    base = {"base": " + ".join(record[kind] for kind in recipe.kinds)}
    if recipe.compensation is None:
        return base
    optimizer = None if recipe.solver == "closed_form" else recipe.optimizer
    z = {"z": record["compensation"], "solver": recipe.solver, "optimizer": optimizer, "budget": record["budget"]}
    return base | z


def _missing(folder: Path, job: Job) -> str:
    error = read_json(job_folder(folder, job) / ERROR)
    return f"seed {job.seed}: " + ("not run yet" if error is None else error["reason"])
