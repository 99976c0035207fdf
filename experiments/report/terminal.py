"""Show the table as a person reads it in the terminal, from 120 columns on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report.cells import Row, notes_of
from experiments.report.columns import Column, chosen, legend
from experiments.report.uncertainty import marked

WIDTH = 150  # where the output goes to a file


def show(table: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, a section for each architecture; one that was skipped as a whole is a single line."""
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=WIDTH)
    rows = marked(table["rows"])
    notes = notes_of(rows)
    view = Table(title=table["title"], title_justify="left", title_style="bold", header_style="bold", box=None)
    view.padding, view.pad_edge = (0, 1, 0, 0), False
    columns, sections = chosen(table["columns"]), "architecture" in table["columns"]
    shown = [column for column in columns if column.name != "architecture"]
    for column in shown:
        head, wraps = column.short or column.header, column.wrap is not None
        view.add_column(head, justify="left" if wraps else "right", no_wrap=not wraps, min_width=column.wrap)
    for architecture, section in groupby(rows, key=lambda row: row["architecture"] if sections else None):
        _add_section(view, architecture, list(section), shown, notes)
    console.print(view)
    console.print(legend(columns, rows), style="dim", highlight=False)
    for text in table.get("findings", ()):
        console.print(f"- {text}", markup=False, highlight=False)
    for text, number in notes.items():
        console.print(f"[{number}] {text}", style="dim", markup=False, highlight=False)


def _add_section(
    view: Table, architecture: str | None, rows: Sequence[Row], columns: Sequence[Column], notes: Mapping[str, int]
) -> None:
    """Add the rows under the name of their architecture; without one where the table does not show it."""
    reasons = {row["reason"] for row in rows}
    if architecture is not None:
        title = f"[bold]{escape(architecture)}[/]"
        if len(reasons) == 1 and {row["status"] for row in rows} == {"skipped"}:
            count, mark = f"{len(rows)} row{'s' * (len(rows) > 1)}", escape(f"[{notes[reasons.pop()]}]")
            view.add_row(title, count, *[""] * (len(columns) - 3), f"skipped {mark}", style="dim")
            return
        models = sorted({row["model"] for row in rows if row["status"] == "done"})
        view.add_row(title, *models[:1])
    for row in rows:
        style = "yellow" if row["stale"] else None if row["status"] == "done" else "dim"
        texts = [column.write(row, notes, 1).replace(" ± ", " ±").removeprefix("done").strip() for column in columns]
        view.add_row(*map(escape, texts), style=style)
