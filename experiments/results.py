"""Results on disk, and the rows of ``table.json`` that they add up to, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.columns import DEFAULT, chosen
from experiments.plan import jobs_of, protocol
from experiments.registry import Job, Reported, Row, Table
from lowrank_vit.errors import InputError
from lowrank_vit.recipes import get_recipe

RESULT, ERROR, PLAN = "result.json", "error.json", "plan.json"
FIELDS = (  # of a row of table.json, in the order of table.csv
    "id",
    "architecture",
    "model",
    "method",
    "protocol",
    "status",
    "reason",
    "reduction",
    "params_printed",
    "params",
    "params_dense",
    "macs",
    "macs_dense",
    "top1_reported",
    "top1_dense",
    "top1_dense_std",
    "top1_before_finetune",
    "top1_before_std",
    "top1",
    "top1_std",
    "seeds",
    "relative_error_held_out",
    "trainable_share",
    "seconds",
    "epochs",
    "stale",
    "source",
    "note",
    "base",
    "z",
    "solver",
    "budget",
    "overhead",
    "gap",
    "gap_std",
    "relative_error",
    "relative_error_std",
    "relative_error_held_out_std",
    "residual_error_reported",
    "bits",
    "top1_float",
    "file_bytes",
    "size_reported",
    "target",
)
MEANS = {  # field of a row: where a result has the number
    "macs": ("macs", "compressed"),
    "macs_dense": ("macs", "dense"),
    "top1_dense": ("top1", "dense"),
    "top1_before_finetune": ("top1", "before"),
    "top1": ("top1", "after"),
    "relative_error_held_out": ("relative_error_held_out",),
    "trainable_share": ("trainable_share",),
    "seconds": ("seconds", "total"),
    "overhead": ("z", "overhead"),
    "gap": ("z", "gap"),
    "relative_error": ("relative_error",),
    "file_bytes": ("file_bytes",),
    "top1_float": ("top1_float",),
}
SPREADS = {
    "top1_dense_std": ("top1", "dense"),
    "top1_before_std": ("top1", "before"),
    "top1_std": ("top1", "after"),
    "gap_std": ("z", "gap"),
    "relative_error_std": ("relative_error",),
    "relative_error_held_out_std": ("relative_error_held_out",),
}
COUNTS = ("macs", "macs_dense", "file_bytes")  # whole numbers also in the mean


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def job_folder(folder: Path, job: Job) -> Path:
    """Where the files of a job lie in the folder of all results: one place, since tables share jobs."""
    return folder / "jobs" / job.key


def find_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """The result of a finished job."""
    return read_json(job_folder(folder, job) / RESULT)


def is_stale(result: Mapping[str, Any], source: str) -> bool:
    """Whether the result was made by another source of the package than ``source``, a hash."""
    return result["provenance"]["source"] != source


def read_plan(folder: Path, table: Table) -> dict[str, Any]:
    """What the last run of the table planned. Raises ``InputError`` where it was never run."""
    plan = read_json(folder / table.name / PLAN)
    if plan is None or plan.get("table") != table.name:
        raise InputError(f"{folder / table.name} has no results: python -m experiments run {table.name}")
    return plan


def table_json(folder: Path, table: Table, plan: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content of ``table.json``. ``source``: the hash of the package's source, by which results are fresh."""
    rows = []
    for row in table.rows:
        entry = plan["rows"].get(row.id, {"reason": "this row is new: run the table again", "jobs": []})
        rows.append(_reported(row) if isinstance(row, Reported) else _measured(folder, row, entry, source))
    columns = [column.name for column in chosen(table.columns or DEFAULT)]
    content = {"title": plan["title"], "profile": plan["profile"], "columns": columns, "rows": rows}
    return content if table.findings is None else {**content, "findings": table.findings(content)}


def finished(results: Path, plan: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results of every row that has any, one for each seed."""
    rows = {name: [find_result(results, job) for job in jobs_of(entry)] for name, entry in plan["rows"].items()}
    return {name: found for name, own in rows.items() if (found := [result for result in own if result is not None])}


def _blank(row: Row | Reported) -> dict[str, Any]:
    own = {"id": row.id, "architecture": row.architecture, "method": row.method, "protocol": row.protocol}
    return dict.fromkeys(FIELDS) | own | {"source": row.source, "note": row.note or None}


def _reported(row: Reported) -> dict[str, Any]:
    return _blank(row) | {"status": "reported", "params_printed": row.params, "top1_reported": row.top1}


def _measured(folder: Path, row: Row, entry: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A row to run, as far as it was run."""
    known = _blank(row) | {
        "model": row.model,
        "reduction": row.reduction or None,
        "params_printed": row.params_printed,
        "top1_reported": row.top1_reported,
        "bits": row.bits,
        "target": row.target,
        **row.printed,
    }
    jobs = jobs_of(entry)
    if not jobs:
        return known | _recipe(row, row.changes) | {"status": "skipped", "reason": entry["reason"]}
    first = jobs[0]
    known |= _recipe(row, first.changes) | {
        "model": first.model,
        "protocol": protocol(row, first),
        "epochs": first.epochs,
    }
    known |= {"reduction": first.reduction or None, "target": row.standin_target if first.standin else row.target}
    found = {job.seed: result for job in jobs if (result := find_result(folder, job)) is not None}
    missing = [_missing(folder, job) for job in jobs if job.seed not in found]
    if not found:
        return known | {"status": "skipped", "reason": missing[0].partition(": ")[2]}
    return known | {"status": "done", "reason": "; ".join(missing) or None} | aggregate(found, source)


def _recipe(row: Row, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the row's recipe after the changes: of Z nothing where there is none."""
    if row.recipe is None:
        return {}
    recipe = get_recipe(row.recipe).but(**changes)
    if recipe.halves:
        return {"base": f"{recipe.attention} + {recipe.mlp}"}
    if recipe.compensation is None:
        return {"base": recipe.decomposition}
    return {
        "base": recipe.decomposition,
        "z": recipe.compensation,
        "solver": recipe.solver,
        "budget": recipe.budget,
    }


def _missing(folder: Path, job: Job) -> str:
    error = read_json(job_folder(folder, job) / ERROR)
    return f"seed {job.seed}: " + ("not run yet" if error is None else error["reason"])


def aggregate(results: Mapping[int, Mapping[str, Any]], source: str) -> dict[str, Any]:
    """What the results of one row, by seed, have in common: means over the seeds, and standard deviations (n - 1)."""
    found = list(results.values())
    means = {name: mean_of(_column(found, path)) for name, path in MEANS.items()}
    spreads = {name: spread_of(_column(found, path)) for name, path in SPREADS.items()}
    params = [mean_of(_column(found, ("params", size))) for size in ("compressed", "dense")]
    counts = {name: means[name] for name in COUNTS} | {"params": params[0], "params_dense": params[1]}
    return {
        **means,
        **spreads,
        **{name: None if count is None else round(count) for name, count in counts.items()},
        "seeds": sorted(results),
        "stale": any(is_stale(result, source) for result in found),
    }


def _column(results: Sequence[Mapping[str, Any]], path: Sequence[str]) -> list[float]:
    """The number at ``path`` of every result that has one."""
    column: list[Any] = list(results)
    for name in path:
        column = [value[name] for value in column if value is not None and value.get(name) is not None]
    return column


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, None of nothing."""
    return fmean(values) if values else None


def spread_of(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds with n - 1 in the denominator, None of fewer than two values."""
    return stdev(values) if len(values) > 1 else None
