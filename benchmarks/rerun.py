"""Whether published numbers come out again: those of jobs that were run here, beside what is published of them.

    python -m benchmarks.rerun --results DIR [DIR ...] [--json FILE]

A line for each table or figure whose last run in a folder of results has jobs that are published, too, of the same code,
recipe and images: how many they are, how many have equal numbers, and the largest difference of a top-1, in points, and
of any other number but times, as a share of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.output import show, write
from experiments.report.agreement import Agreement, agreement
from experiments.report.render import published_file
from experiments.report.rows import finished
from experiments.runner.plan import PLAN, read_plan
from experiments.tables.catalogue import tables
from experiments.tables.rows import Table
from lowrank_vit.runtime.errors import InputError

HEADER = ("table", "images", "jobs", "equal", "top-1, points", "other numbers")


def compared(folders: list[Path]) -> Iterator[tuple[Table, Any, Agreement, set[str]]]:
    """Compare every table that was run in the folders: with its plan, and the commits that its results are of."""
    for folder in folders:
        for table in tables().values():
            if not (folder / table.name / PLAN).is_file():
                continue
            plan, found = read_plan(folder, table), agreement(folder, table)
            if found is not None:
                results = [result for of_row in finished(folder, plan).values() for result in of_row]
                yield table, plan, found, {result["provenance"]["git"]["commit"] for result in results}


def main() -> None:
    """Compare, print a line for each table, and say how many jobs there are in all."""
    parser = argparse.ArgumentParser(description="Compare results with what is published.")
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("results")], metavar="DIR")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = list(compared(args.results))
    if not found:
        raise InputError(f"no job in {', '.join(map(str, args.results))} is published, too: run a table first")
    commits = sorted(set().union(*(commits for *_, commits in found)))
    jobs, equal = (sum(getattr(item, name) for _, _, item, _ in found) for name in ("jobs", "equal"))
    title = (
        f"{jobs:,} published jobs run again, {equal:,} with equal numbers; commit {', '.join(c[:7] for c in commits)}"
    )
    rows = [
        [
            table.title,
            published_file(plan, table).parent.name,
            str(item.jobs),
            str(item.equal),
            f"{item.points[0]:.2g}",
            f"{item.share[0]:.1e}",
        ]
        for table, plan, item, _ in found
    ]
    show(title, HEADER, rows)
    data = [{"table": table.name, "profile": plan["profile"], **asdict(item)} for table, plan, item, _ in found]
    write(args.json, title, HEADER, rows, {"commits": commits, "tables": data})


if __name__ == "__main__":
    main()
