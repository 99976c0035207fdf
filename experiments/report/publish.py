"""Keep results in the repository: committed as JSON with their provenance, and rendered in the README and in ``docs``.

``python -m experiments publish TABLE[/ROW]...`` takes over what was run here; benchmarks write their JSON themselves. A
test holds the texts to the JSON.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.jobs.job import Job, read_json
from experiments.report.ablation import findings
from experiments.report.origins import origin, untrained
from experiments.report.overview import write_figures
from experiments.report.plots import save_figure
from experiments.report.render import PUBLISHED, published_file, render_all
from experiments.report.rows import FIELDS, command, finished, table_json
from experiments.report.seeds import joined, numbers
from experiments.report.write import PICTURES
from experiments.runner.plan import read_plan
from experiments.tables.rows import Row, Table
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_json, write_text

ROOT = PUBLISHED.parent.parent


def publish(results: Path, table: Table, folder: Path = PUBLISHED, chosen: Collection[str] | None = None) -> Path:
    """Copy the last run of a table, or a figure, among the published ones; returns the file of its rows.

    Only rows with numbers are kept. A table keeps those that were published before and not run now, or not ``chosen`` by
    their names; of the others it keeps seeds that were not run now. A figure is of one run. Raises ``InputError`` where
    nothing was run, where a result is stale or was made from a package with changes that are not committed, where some
    seeds of a row are missing, where a row is called fine-tuned or distilled, but was not trained, and for some rows of
    a figure.
    """
    runnable = {row.id: row for row in table.runnable}
    wanted = runnable.keys() if chosen is None else runnable.keys() & set(chosen)
    if table.drawing is not None and wanted != runnable.keys():
        raise InputError(f"{table.name} is one picture: publish all of it, {table.name}")
    plan = read_plan(results, table)
    content = table_json(results, table, plan)
    by_row = {name: of_row for name, of_row in finished(results, plan).items() if name in wanted}
    path = published_file(plan, table, folder)
    earlier, commands = _earlier(path, table)
    provenance = _provenance(table, [result for of_row in by_row.values() for result in of_row])
    kept = {row["id"]: row for row in content["rows"] if row["status"] == "reported"}
    for row in content["rows"]:
        if row["status"] == "done" and row["id"] in wanted:
            name = row["id"]
            kept[name] = made = joined(_checked(table, row, by_row[name]), earlier.get(name))
            jobs = [replace(Job.from_json(made["job"]), seed=seed) for seed in made["seeds"]]
            commands[name] = command(table, runnable[name], jobs)
    everything = earlier | kept
    rows = [everything[row.id] for row in table.rows if row.id in everything]
    content |= {"rows": rows, "provenance": provenance, "commands": commands}
    if table.findings:
        content["findings"] = findings(content)
    if table.drawing is not None:
        content["measured"] = {row: [result["measured"] for result in of_row] for row, of_row in by_row.items()}
    write_json(path, content)
    figure = results / table.name / f"{table.name}.png"
    if table.drawing is not None and figure.is_file():
        shutil.copyfile(figure, path.with_name(figure.name))
    for name in table.pictures if table.drawing is None else ():  # of all published rows
        save_figure(path.with_name(f"{table.name}_{name}"), PICTURES[name](content), ["png"])
    return path


def _earlier(path: Path, table: Table) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the rows that were published before and are still the table's, and their commands, both by their names."""
    before = (read_json(path) if table.drawing is None else None) or {"rows": [], "commands": {}}
    known = {row.id for row in table.rows}
    kept = {row["id"]: dict.fromkeys(FIELDS) | row for row in before["rows"] if row["id"] in known}
    return kept, {name: command for name, command in before["commands"].items() if name in kept}


def _provenance(table: Table, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the results' provenance has in common. Raises ``InputError`` where one is of code that no commit has."""
    if not results:
        raise InputError(f"{table.name} has no results to publish: python -m experiments run {table.name}")
    origins = [result["provenance"] for result in results]
    if any((item["git"] or {"dirty": True})["dirty"] for item in origins):
        raise InputError(f"{table.name} has results of a package with uncommitted changes: commit, then run it again")
    return {
        "commits": sorted({item["git"]["commit"] for item in origins}),
        "versions": origins[0]["versions"],
        "devices": sorted({item["device"] for item in origins}),
    }


def _checked(table: Table, row: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row as it is published, with its origin. Raises ``InputError`` for one that must not be published."""
    if row["stale"] or row["reason"]:
        why = "is stale" if row["stale"] else f"is not whole ({row['reason']})"
        raise InputError(f"{table.name}/{row['id']} {why}: run it again, with --rerun-stale, before publishing")
    of_seeds = {str(result["provenance"]["seed"]): result for result in results}
    hits = {seed: result["hits"] for seed, result in of_seeds.items() if result.get("hits")}  # see ``pack_hits``
    by_seed = {seed: numbers(result) for seed, result in of_seeds.items()}
    made = {**row, **origin(results), "by_seed": by_seed, "hits": hits}
    if untrained(made):
        raise InputError(
            f"{table.name}/{row['id']} says {row['protocol']!r}, but was not trained: run it with --epochs"
        )
    return made


def pages() -> list[Path]:
    """List the texts that show what is published."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run(results: Path, chosen: Sequence[tuple[Table, Sequence[Row]]]) -> int:
    """Run ``python -m experiments publish``. Raises ``InputError`` for an installed package, which has no texts."""
    if not PUBLISHED.is_dir():
        raise InputError("publish writes to the repository, and this is an installed package: run it in a checkout")
    written = [publish(results, table, chosen={row.id for row in rows}) for table, rows in chosen]
    for page in pages():
        write_text(page, render_all(page.read_text(encoding="utf-8")))
    write_figures(PUBLISHED / "imagenet-samples", ROOT / "docs" / "figures")
    for path in (*written, *pages()):  # at last, for a reader may close the pipe
        print(path.relative_to(ROOT))
    return 0
