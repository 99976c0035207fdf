"""Keep results in the repository: committed as JSON with their provenance, and rendered in the README and in ``docs``.

``python -m experiments publish TABLE[/ROW]...`` takes over what was run here; benchmarks write their JSON themselves. A
test holds the texts to the JSON.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.jobs.job import Job
from experiments.jobs.results import read_json
from experiments.report.ablation import findings
from experiments.report.details import command as command_of
from experiments.report.origins import origin, untrained
from experiments.report.pictures import PICTURES
from experiments.report.render import PUBLISHED, published_file, render_all
from experiments.report.rows import FIELDS, finished, table_json
from experiments.report.seeds import hits_of, joined, numbers
from experiments.runner.plan import read_plan
from experiments.tables.rows import Row, Table
from lowrank_vit.runtime.errors import InputError

ROOT = PUBLISHED.parent.parent


def publish(results: Path, table: Table, folder: Path = PUBLISHED, chosen: Collection[str] | None = None) -> Path:
    """Copy the last run of a table, or a figure, among the published ones; returns the file of its rows.

    Only rows with numbers are kept. A table keeps those that were published before and not run now, or not ``chosen`` by
    their names; of the others it keeps seeds that were not run now. A figure is of one run. Raises ``InputError`` where
    nothing was run, where a result is stale or was made from a package with changes that are not committed, where some
    seeds of a row are missing, where a row is called fine-tuned or distilled, but was not trained, and for some rows of
    a figure.
    """
    from lowrank_vit.runtime.files import write_json

    wanted = _wanted(table, chosen)
    plan = read_plan(results, table)
    content = table_json(results, table, plan)
    by_row = {name: of_row for name, of_row in finished(results, plan).items() if name in wanted}
    results_kept = _of_commits(table, by_row)
    rows = [
        _kept(table, row, by_row)
        for row in content["rows"]
        if row["status"] == "reported" or (row["status"] == "done" and row["id"] in wanted)
    ]
    path = published_file(plan, table, folder)
    earlier, earlier_commands = _earlier(path, table)
    rows = [joined(row, earlier.get(row["id"])) for row in rows]
    everything = earlier | {row["id"]: row for row in rows}
    kept = {
        **content,
        "rows": [everything[row.id] for row in table.rows if row.id in everything],
        "provenance": _provenance(results_kept),
        "commands": earlier_commands | _commands(table, rows),
    }
    if table.findings:
        kept["findings"] = findings(kept)
    if table.drawing is not None:
        kept["measured"] = {row: [result["measured"] for result in of_row] for row, of_row in by_row.items()}
    write_json(path, kept)
    _draw(results, table, path, kept)
    return path


def _wanted(table: Table, chosen: Collection[str] | None) -> set[str]:
    """Name the rows to publish: all, or those chosen of a table."""
    everything = {row.id for row in table.runnable}
    wanted = everything if chosen is None else everything & set(chosen)
    if table.drawing is not None and wanted != everything:
        raise InputError(f"{table.name} is one picture: publish all of it, {table.name}")
    return wanted


def _of_commits(table: Table, by_row: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """List all results. Raises ``InputError`` where one was made by code that no commit has."""
    results = [result for of_row in by_row.values() for result in of_row]
    if not results:
        raise InputError(f"{table.name} has no results to publish: python -m experiments run {table.name}")
    if any(((result["provenance"]["git"]) or {"dirty": True})["dirty"] for result in results):
        raise InputError(f"{table.name} has results of a package with uncommitted changes: commit, then run it again")
    return results


def _draw(results: Path, table: Table, path: Path, content: Mapping[str, Any]) -> None:
    """Save the pictures next to the JSON: a figure as it was drawn, a table's plots of all published rows."""
    from lowrank_vit.runtime.files import replacing

    figure = results / table.name / f"{table.name}.png"
    if table.drawing is not None and figure.is_file():
        shutil.copyfile(figure, path.with_name(figure.name))
    for name in () if table.drawing is not None else table.pictures:
        with replacing(path.with_name(f"{table.name}_{name}.png")) as temporary:
            PICTURES[name](content).savefig(temporary, dpi=150, format="png")


def _earlier(path: Path, table: Table) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the rows that were published before and are still the table's, and their commands, both by their names."""
    before = (read_json(path) if table.drawing is None else None) or {"rows": [], "commands": {}}
    known = {row.id for row in table.rows}
    kept = {row["id"]: dict.fromkeys(FIELDS) | row for row in before["rows"] if row["id"] in known}
    return kept, {name: command for name, command in before["commands"].items() if name in kept}


def _commands(table: Table, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Write the command that repeats each row, with all of its seeds."""
    known = {row.id: row for row in table.runnable}
    return {
        row["id"]: command_of(
            table, known[row["id"]], [replace(Job.from_json(row["job"]), seed=seed) for seed in row["seeds"]]
        )
        for row in rows
        if row["status"] == "done"
    }


def _kept(table: Table, row: Mapping[str, Any], by_row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as it is published. Raises ``InputError`` for one that must not be published."""
    if row["status"] == "reported":
        return dict(row)
    if row["stale"] or row["reason"]:
        why = "is stale" if row["stale"] else f"is not whole ({row['reason']})"
        raise InputError(f"{table.name}/{row['id']} {why}: run it again, with --rerun-stale, before publishing")
    results = by_row[row["id"]]
    by_seed = {str(result["provenance"]["seed"]): numbers(result) for result in results}
    kept = {**row, **origin(results), "by_seed": by_seed, "hits": hits_of(results)}
    if untrained(kept):
        raise InputError(
            f"{table.name}/{row['id']} says {row['protocol']!r}, but was not trained: run it with --epochs"
        )
    return kept


def _provenance(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the provenance that the results share."""
    origins = [result["provenance"] for result in results]
    return {
        "commits": sorted({item["git"]["commit"] for item in origins}),
        "versions": origins[0]["versions"],
        "devices": sorted({item["device"] for item in origins}),
    }


def pages() -> list[Path]:
    """List the texts that show what is published."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(results: Path, chosen: Sequence[tuple[Table, Sequence[Row]]]) -> int:
    """Run ``python -m experiments publish``. Raises ``InputError`` for an installed package, which has no texts."""
    from experiments.report.overview import write_figures
    from lowrank_vit.runtime.files import write_text

    if not PUBLISHED.is_dir():
        raise InputError("publish writes to the repository, and this is an installed package: run it in a checkout")
    written = [publish(results, table, chosen={row.id for row in rows}) for table, rows in chosen]
    for page in pages():
        write_text(page, render_all(page.read_text(encoding="utf-8")))
    write_figures(PUBLISHED / "imagenet-samples", ROOT / "docs" / "figures")
    for path in (*written, *pages()):  # at last, for a reader may close the pipe
        print(path.relative_to(ROOT))
    return 0
