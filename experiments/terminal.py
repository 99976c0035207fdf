"""The table as a person reads it in the terminal, from 120 columns on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report import COLUMNS, Row, cells, legend, notes_of

WIDTH = 150  # where the output goes to a file
WRAPPED = {"Method": 12, "Protocol": 9, "Status": 8}  # and their least widths
HEADS = {
    "Params printed": "Params\nprinted",
    "Params measured": "Params\nmeasured",
    "Top-1 reported": "Top-1\npaper",
    "Top-1 dense": "dense\n%",
    "before FT": "before\nFT %",
    "after FT": "after\nFT %",
    "Error held-out": "Error\nunseen",
    "Seconds": "Sec.",
}


def show(table: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table, a section for each architecture; one that was skipped as a whole is a single line."""
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=WIDTH)
    rows = table["rows"]
    notes = notes_of(rows)
    view = Table(title=table["title"], title_justify="left", title_style="bold", header_style="bold", box=None)
    view.padding, view.pad_edge = (0, 1, 0, 0), False
    for name in COLUMNS[1:]:
        head, width = HEADS.get(name, name), WRAPPED.get(name)
        if width is None:
            view.add_column(head, justify="right", no_wrap=True)
        else:
            view.add_column(head, min_width=width)
    for architecture, own in groupby(rows, key=lambda row: row["architecture"]):
        _add_section(view, architecture, list(own), notes)
    console.print(view)
    console.print(legend(rows), style="dim", highlight=False)
    for text, number in notes.items():
        console.print(f"[{number}] {text}", style="dim", markup=False, highlight=False)


def _add_section(view: Table, architecture: str, rows: Sequence[Row], notes: Mapping[str, int]) -> None:
    models = sorted({row["model"] for row in rows if row["status"] == "done"})
    reasons, blank = {row["reason"] for row in rows}, [""] * (len(COLUMNS) - 4)
    if len(reasons) == 1 and {row["status"] for row in rows} == {"skipped"}:
        mark = escape(f"[{notes[reasons.pop()]}]")
        view.add_row(
            f"[bold]{architecture}[/]",
            f"{len(rows)} row{'s' * (len(rows) > 1)}",
            *blank,
            f"skipped {mark}",
            style="dim",
        )
        return
    view.add_row(f"[bold]{architecture}[/]", *models[:1])
    for row in rows:
        style = "yellow" if row["stale"] else None if row["status"] == "done" else "dim"
        text = [cell.replace(" ± ", " ±").removeprefix("done").strip() for cell in cells(row, notes, digits=1)[1:]]
        view.add_row(*map(escape, text), style=style)
