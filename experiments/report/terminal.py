"""Show the table as a person reads it in the terminal, from 120 columns on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report.agreement import agreement
from experiments.report.columns import chosen, legend, notes_of
from experiments.report.page import written
from experiments.report.uncertainty import Row, marked
from experiments.report.write import write_report
from experiments.tables.rows import Table as TableToRun
from lowrank_vit.runtime.progress import make_console

FEW = 3  # rows that are skipped for one reason have a line each


def report(results: Path, table: TableToRun) -> list[str]:
    """Write a table's report, show it, say whether its numbers are those that are published, and name its files."""
    show(write_report(results, table))
    if (found := agreement(results, table)) is not None:
        print(found.sentence)
    return written(table)


def show(table: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, a section for each architecture; many rows that were skipped for one reason share a line."""
    console, columns = console or make_console(), chosen(table["columns"])
    rows = merged(marked(table["rows"]))
    notes = notes_of(rows)
    view = Table(title=table["title"], title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    view.pad_edge = False
    shown = [column for column in columns if column.name != "architecture"]
    for column in shown:
        head, wraps = column.short or column.header, column.wrap is not None
        view.add_column(head, justify="left" if wraps else "right", no_wrap=not wraps, min_width=column.wrap)
    for architecture, section in groupby(rows, key=lambda row: row["architecture"]):
        own = list(section)
        if len(shown) < len(columns) and any(row["id"] for row in own):
            models = [row["model"] for row in own if row["status"] == "done"]
            view.add_row(f"[bold]{escape(architecture)}[/]", *models[:1])
        for row in own:
            texts = [column.write(row, notes, 1).replace(" ± ", " ±").removeprefix("done").strip() for column in shown]
            style = "yellow" if row["stale"] else None if row["status"] == "done" else "dim"
            view.add_row(*map(escape, texts), style=style)
    console.print(view)
    console.print(legend(columns, table["rows"]), style="dim", highlight=False)
    for text in table.get("findings", ()):
        console.print(f"- {text}", markup=False, highlight=False)
    for text, number in notes.items():
        console.print(f"[{number}] {text}", style="dim", markup=False, highlight=False)


def merged(rows: Sequence[Row]) -> list[Row]:
    """Put one row in the place of an architecture's rows that were skipped for one reason, where they are many."""
    skipped = Counter((row["architecture"], row["reason"]) for row in rows if row["status"] == "skipped")
    kept: dict[Any, Row] = {}
    for row in rows:
        name = row["architecture"], row["reason"]
        if row["status"] == "skipped" and skipped[name] > FEW:
            same = {field: row[field] for field in ("architecture", "status", "reason", "stale")}
            kept[name] = dict.fromkeys(row) | same | {"method": f"{row['architecture']}: {skipped[name]} rows"}
        else:
            kept[row["id"]] = row
    return list(kept.values())
