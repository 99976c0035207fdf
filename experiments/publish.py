"""Results that are kept in the repository: committed as JSON with their provenance, and rendered in the README.

``python -m experiments publish TABLE...`` takes over what was run here. The README holds a place for each rendering,

    <!-- published digits/table2 columns=method,params,top1 rows=deit_b/* -->
    <!-- end -->

and everything between is written anew; a test holds the README to the JSON.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.columns import chosen
from experiments.details import details
from experiments.registry import Table
from experiments.report import PLOT, table_lines
from experiments.results import finished, read_json, read_plan, table_json
from lowrank_vit.errors import InputError

ROOT = Path(__file__).parent.parent
PUBLISHED = Path(__file__).parent / "published"
PLACE = re.compile(r"<!-- published (?P<name>\S+)(?P<options>(?: \S+=\S+)*) -->\n.*?<!-- end -->", re.DOTALL)


def publish(results: Path, table: Table, folder: Path = PUBLISHED) -> Path:
    """Copy the last run of a table, or a figure, among the published ones; returns the file of its rows.

    Only rows with numbers are kept. Raises ``InputError`` where nothing was run, where a result is stale or was made from
    a package with changes that are not committed, and where some seeds of a row are missing.
    """
    from lowrank_vit.files import write_json
    from lowrank_vit.provenance import source_hash

    plan = read_plan(results, table)
    content = table_json(results, table, plan, source_hash())
    rows = [row for row in content["rows"] if row["status"] in ("done", "reported")]
    for row in rows:
        if row["stale"] or (row["status"] == "done" and row["reason"]):
            why = "is stale" if row["stale"] else f"is not whole ({row['reason']})"
            raise InputError(f"{table.name}/{row['id']} {why}: run it again, with --rerun-stale, before publishing")
    by_row = finished(results, plan)
    found = [result for own in by_row.values() for result in own]
    if not found:
        raise InputError(f"{table.name} has no results to publish: python -m experiments run {table.name}")
    if any(((result["provenance"]["git"]) or {"dirty": True})["dirty"] for result in found):
        raise InputError(f"{table.name} has results of a package with uncommitted changes: commit, then run it again")
    profile = plan["profile"].partition(":")[2] or "digits"
    commands = {name: own["command"] for name, own in details(results, table, plan).items()}
    path = folder / profile / f"{table.name}.json"
    kept = {**content, "rows": rows, "provenance": _provenance(found), "commands": commands}
    if table.drawing is not None:
        kept["measured"] = {row: [result["measured"] for result in own] for row, own in by_row.items()}
    write_json(path, kept)
    for name in [table.name] if table.drawing else list(table.pictures or (PLOT,)):
        picture = results / table.name / f"{name}.png"
        if picture.is_file():
            shutil.copyfile(picture, path.with_name(picture.name if table.drawing else f"{table.name}_{name}.png"))
    return path


def _provenance(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the results have in common, and the seconds that they took together."""
    own = [result["provenance"] for result in found]
    return {
        "commits": sorted({item["git"]["commit"] for item in own}),
        "sources": sorted({item["source"] for item in own}),
        "versions": own[0]["versions"],
        "devices": sorted({item["device"] for item in own}),
        "threads": sorted({result["threads"] for result in found}),
        "seeds": sorted({item["seed"] for item in own}),
        "jobs": len(found),
        "seconds": round(sum(result["seconds"]["total"] for result in found)),
    }


def render_all(text: str, folder: Path = PUBLISHED) -> str:
    """A Markdown text with everything between its marks written anew. Raises ``InputError`` for a mark of nothing."""
    return PLACE.sub(lambda place: "\n".join(_render(place, folder)), text)


def _render(place: re.Match[str], folder: Path) -> Iterator[str]:
    options = dict(option.split("=", 1) for option in place["options"].split())
    content = read_json(folder / f"{place['name']}.json")
    if content is None:
        raise InputError(f"nothing is published as {place['name']!r}: run it, then python -m experiments publish")
    patterns = options.get("rows", "*").split(",")
    rows = [row for row in content["rows"] if any(fnmatch.fnmatchcase(row["id"], pattern) for pattern in patterns)]
    names = options["columns"].split(",") if "columns" in options else content["columns"]
    source = content["provenance"]
    yield place[0].partition("\n")[0]
    yield f"*{content['title']}*; {_origin(source)}"
    yield ""
    if rows:
        yield from table_lines(chosen(names), rows, digits=1)
    if "findings" in options:
        yield from ("", *(f"- {text}" for text in content["findings"]))
    yield "<!-- end -->"


def _origin(source: Mapping[str, Any]) -> str:
    seeds, versions = ", ".join(map(str, source["seeds"])), source["versions"]
    commits = ", ".join(commit[:7] for commit in source["commits"])
    return (
        f"seed{'s' * (len(source['seeds']) > 1)} {seeds}; {source['jobs']} jobs, {source['seconds'] / 60:.0f} minutes of "
        f"work on {', '.join(source['devices'])}, torch {versions['torch']}, timm {versions['timm']}; commit {commits}."
    )


def run(results: Path, tables: Sequence[Table]) -> int:
    """``python -m experiments publish``."""
    from lowrank_vit.files import write_text

    for table in tables:
        print(publish(results, table).relative_to(ROOT))
    readme = ROOT / "README.md"
    write_text(readme, render_all(readme.read_text(encoding="utf-8")))
    print("README.md")
    return 0
