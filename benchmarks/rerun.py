"""Whether published numbers come out again: those of jobs that were run here, beside what is published of them.

    python -m benchmarks.rerun --results DIR [DIR ...] [--json FILE]

A line for each table or figure whose last run in a folder of results has jobs that are published, too, of the same code,
recipe and images: how many they are, how many have equal numbers, and the largest difference of a top-1, in points, and
of any other number but times, as a share of it.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.output import show, write
from experiments.report.agreement import agreement
from experiments.report.render import published_file
from experiments.runner.plan import PLAN, read_plan
from experiments.tables.catalogue import tables

HEADER = ("table", "images", "jobs", "equal", "top-1, points", "other numbers")


def main() -> None:
    """Compare, print a line for each table, and say how many jobs there are in all."""
    parser = argparse.ArgumentParser(description="Compare results with what is published.")
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("results")], metavar="DIR")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    run = [
        (folder, table)
        for folder in args.results
        for table in tables().values()
        if (folder / table.name / PLAN).is_file()
    ]
    plans = [(table, read_plan(folder, table), agreement(folder, table)) for folder, table in run]
    found = [(table, plan, compared) for table, plan, compared in plans if compared is not None]
    if not found:
        parser.error(f"no job in {', '.join(map(str, args.results))} is published, too: run a table first")
    commits = sorted({commit for *_, compared in found for commit in compared.commits})
    jobs, equal = (sum(getattr(item, name) for *_, item in found) for name in ("jobs", "equal"))
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
        for table, plan, item in found
    ]
    show(title, HEADER, rows)
    data = [{"table": table.name, "profile": plan["profile"], **asdict(item)} for table, plan, item in found]
    write(args.json, title, HEADER, rows, {"commits": commits, "tables": data})


if __name__ == "__main__":
    main()
