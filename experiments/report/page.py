"""Write a table as one self-contained page, ``table.html``, and ``index.html``, which links all of them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report.cells import Row, notes_of, remarks, shown_status
from experiments.report.columns import Column, chosen, legend
from experiments.report.formats import file_size, printed_count
from experiments.report.sizes import of_file
from experiments.report.styles import model_of, series_of, styles_of
from experiments.report.uncertainty import NOISY, fewer_seeds, images_of, interval, marked

ASSETS = Path(__file__).parent / "assets"
FILTERS = ("architecture", "method", "protocol", "base", "z", "solver", "status")  # where a table has the column


@cache
def _environment() -> Environment:
    """Load templates that escape all they are given, but for the style and the script, which are files of ours."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("page.*")}
    digest = base64.b64encode(hashlib.sha256(texts["page.js"].encode()).digest()).decode()
    environment.globals |= {
        "style": texts["page.css"],
        "script": texts["page.js"],
        "script_hash": f"sha256-{digest}",  # no other script runs
    }
    return environment


def page(table: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]], imagenet: bool, command: str | None) -> str:
    """Write ``table.html``. ``told``: the ``details`` of the rows; ``imagenet``: whether the printed numbers compare.

    ``command``: the last one that ran; None where the plan does not know it.
    """
    columns, rows = chosen(table["columns"]), table["rows"]
    notes, fewer = notes_of(rows), fewer_seeds(rows)
    names = [column.name for column in columns]
    filters = [name for name in FILTERS if name in names]
    return (
        _environment()
        .get_template("table.html")
        .render(
            title=table["title"],
            command=command,
            columns=columns,
            head="method" if "method" in names else names[0],
            noisy=NOISY,
            images=images_of(rows),
            rows=[
                _shown(row, columns, notes, told.get(row["id"], {})) | {"fewer": row["id"] in fewer}
                for row in marked(rows)
            ],
            filters={name: list(dict.fromkeys(_filtered(row, name) for row in rows)) for name in filters},
            findings=table.get("findings", []),
            legend=legend(columns, rows),
            notes=list(notes),
            data=page_data(table, told, imagenet),
        )
    )


def page_data(table: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]], imagenet: bool) -> dict[str, Any]:
    """Return what the page's script draws from: the rows of ``table.json``, each with its layers."""
    fewer, measured = fewer_seeds(table["rows"]), [row for row in table["rows"] if row["status"] != "reported"]
    rows = [
        {
            **row,
            "params_printed_count": printed_count(row["params_printed"]),
            "setting": _setting(row),
            "series": series_of(row),
            "fewer": fewer.get(row["id"]),
            "interval": interval(row["top1"], row["images"]) if row.get("images") and row["top1"] is not None else None,
            "layers": told.get(row["id"], {}).get("layers", []),
        }
        for row in map(of_file, table["rows"])
    ]
    models = {
        name: model_of([row for row in measured if row["architecture"] == name])
        for name in dict.fromkeys(row["architecture"] for row in measured)
    }
    styles = styles_of([series_of(row) for row in measured if row["protocol"] != "dense"])
    return {
        "imagenet": imagenet,
        "columns": table["columns"],
        "models": models,
        "styles": {name: style.as_json() for name, style in styles.items()},
        "rows": rows,
    }


def _setting(row: Row) -> str | None:
    """Name the size that was asked for, which rows with comparable ranks share."""
    if row["target"] is not None:
        return f"as small as {row['target']}"
    return None if row["reduction"] is None else f"-{100 * row['reduction']:.0f}%"


def _filtered(row: Row, name: str) -> str:
    return shown_status(row) if name == "status" else row[name] or "none"


def _shown(row: Row, columns: Sequence[Column], notes: Mapping[str, int], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the template: its cells, and what it shows when it is expanded."""
    return {
        "id": row["id"],
        "architecture": row["architecture"],
        "status": shown_status(row),
        "cells": [(column, column.write(row, notes, 2), column.value(row)) for column in columns],
        "remarks": remarks(row),
        "exact": _exact(row),
        "source": None if row["status"] == "reported" else row["source"],  # there it is a remark
        "command": told.get("command"),
        "jobs": told.get("jobs", []),
        "made": list(dict.fromkeys(_made(job) for job in told.get("jobs", []))),
    }


def _made(job: Mapping[str, Any]) -> str:
    """Describe what a job's numbers were made with: mostly the same for all seeds."""
    versions = ", ".join(f"{name} {version}" for name, version in (job["versions"] or {}).items())
    commit = job["commit"] and f"commit {job['commit']}"
    return "; ".join(part for part in (job["device"], commit, versions) if part)


def _exact(row: Row) -> str:
    """Write the counts of a row, to the last digit."""
    counts = []
    for name, words in (("params", "parameters"), ("macs", "multiply-accumulates")):
        if row[name] is not None and row[f"{name}_dense"] is not None:
            counts.append(f"{row[name]:,} {words}, dense {row[f'{name}_dense']:,}")
    if row["file_bytes"] is not None:
        counts.append(f"{row['file_bytes']:,} bytes on disk ({file_size(row['file_bytes'])})")
    return "; ".join(counts)


def write_index(results: Path) -> None:
    """Write ``index.html`` among all results: every table and figure that was rendered, with its files."""
    from experiments.jobs.results import read_json
    from experiments.report.files import written
    from experiments.tables import catalogue
    from lowrank_vit.runtime.files import write_text

    entries = []
    for table in catalogue.tables().values():
        files = [name for name in written(table) if (results / table.name / name).is_file()]
        content = read_json(results / table.name / "table.json")
        if files and content is not None:
            best_first = sorted(files, key=lambda name: (not name.endswith(".html"), not name.endswith(".png")))
            entries.append({"name": table.name, "title": content["title"], "files": best_first})
    write_text(results / "index.html", _environment().get_template("index.html").render(entries=entries))
