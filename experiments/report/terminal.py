"""Show the table as a person reads it in the terminal, from 120 columns on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report.agreement import agreement
from experiments.report.cells import Row, notes_of
from experiments.report.columns import Column, chosen, legend
from experiments.report.page import written
from experiments.report.uncertainty import marked
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
    console = console or make_console()
    columns, by_architecture = chosen(table["columns"]), "architecture" in table["columns"]
    rows = marked(table["rows"])
    sections = [
        Section.of(architecture, list(section))
        for architecture, section in groupby(rows, key=lambda row: row["architecture"] if by_architecture else None)
    ]
    notes = notes_of([row for section in sections for row in section.footnoted])
    view = Table(title=table["title"], title_justify="left", title_style="bold", header_style="bold", box=None)
    view.padding, view.pad_edge = (0, 1, 0, 0), False
    shown = [column for column in columns if column.name != "architecture"]
    for column in shown:
        head, wraps = column.short or column.header, column.wrap is not None
        view.add_column(head, justify="left" if wraps else "right", no_wrap=not wraps, min_width=column.wrap)
    for section in sections:
        section.add_to(view, shown, notes)
    console.print(view)
    console.print(legend(columns, rows), style="dim", highlight=False)
    for text in table.get("findings", ()):
        console.print(f"- {text}", markup=False, highlight=False)
    for text, number in notes.items():
        console.print(f"[{number}] {text}", style="dim", markup=False, highlight=False)


@dataclass(frozen=True)
class Section:
    """Hold the rows of an architecture, and how many were skipped for each reason that many share."""

    architecture: str | None
    rows: list[Row]
    skipped: Mapping[str, int]

    @classmethod
    def of(cls, architecture: str | None, rows: Sequence[Row]) -> "Section":
        """Separate the rows that are printed from those that share a line."""
        reasons = Counter(str(row["reason"]) for row in rows if row["status"] == "skipped")
        shared = {reason: count for reason, count in reasons.items() if count > FEW}
        kept = [row for row in rows if row["status"] != "skipped" or str(row["reason"]) not in shared]
        return cls(architecture, kept, shared)

    @property
    def footnoted(self) -> list[Row]:
        """List what the footnotes refer to: the rows, and each shared reason once."""
        blank = {"status": "skipped", "stale": False, "note": "", "source": None}
        return [*self.rows, *({**blank, "reason": reason} for reason in self.skipped)]

    def add_to(self, view: Table, columns: Sequence[Column], notes: Mapping[str, int]) -> None:
        """Add the rows under the name of their architecture, or without it where the table does not show one."""
        title = "" if self.architecture is None else f"[bold]{escape(self.architecture)}[/]"
        if title and self.rows:
            models = sorted({row["model"] for row in self.rows if row["status"] == "done"})
            view.add_row(title, *models[:1])
            title = ""
        for row in self.rows:
            style = "yellow" if row["stale"] else None if row["status"] == "done" else "dim"
            texts = [
                column.write(row, notes, 1).replace(" ± ", " ±").removeprefix("done").strip() for column in columns
            ]
            view.add_row(*map(escape, texts), style=style)
        for reason, count in self.skipped.items():
            mark = escape(f"[{notes[reason]}]")
            view.add_row(title, f"{count} rows", *[""] * (len(columns) - 3), f"skipped {mark}", style="dim")
            title = ""
