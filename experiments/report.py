"""From results to the files of a table: JSON, Markdown, CSV, LaTeX, a page and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.columns import Column, Row, chosen, legend, notes_of
from experiments.latex import latex
from experiments.registry import Table
from experiments.results import FIELDS, finished, read_plan, table_json

PLOT = "accuracy_vs_params"
RENDERED = ("table.md", "table.csv", "table.json", "table.tex", "table.html")


def markdown(table: Mapping[str, Any], command: str, pictures: Sequence[str] = (PLOT,)) -> str:
    """``table.md``. pictures: their files' names."""
    columns, rows = chosen(table["columns"]), table["rows"]
    notes = notes_of(rows)
    parts = [
        f"# {table['title']}",
        f"`{command}`",
        "\n".join(table_lines(columns, rows)),
        legend(columns, rows),
        "\n".join(f"[{number}] {text}  " for text, number in notes.items()),
        "\n".join(f"- {text}" for text in table.get("findings", ())),
        *(f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_lines(columns: Sequence[Column], rows: Sequence[Row], digits: int = 2) -> list[str]:
    """The rows as a Markdown table. digits: of measured percentages."""
    notes = notes_of(rows)
    lines = [
        [column.header for column in columns],
        [":--" if column.kind == "text" else "--:" for column in columns],
        *([_cell(column.write(row, notes, digits)) for column in columns] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    """Nothing in a cell may end it."""
    return " ".join(text.split()).replace("|", "\\|")


def csv_text(table: Mapping[str, Any]) -> str:
    """``table.csv``: the fields of ``table.json``, seeds separated by blanks, and the title in a column of its own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["title", *FIELDS])
    for row in table["rows"]:
        values = [" ".join(map(str, row[name])) if name == "seeds" and row[name] else row[name] for name in FIELDS]
        writer.writerow([table["title"], *values])
    return out.getvalue()


def written(table: Table) -> list[str]:
    """The names of the files that a report of ``table`` consists of, once it has results."""
    if table.drawing is None:
        return [*RENDERED, *(f"{name}.{kind}" for name in table.pictures or (PLOT,) for kind in ("png", "pdf"))]
    return ["table.json", *(f"{table.name}.{kind}" for kind in ("json", "png", "pdf"))]


def write_report(results: Path, table: Table) -> dict[str, Any]:
    """Render the last run of the table into its folder among the results; returns the content of ``table.json``.

    Raises ``InputError`` where the table was never run.
    """
    from experiments.page import write_index
    from lowrank_vit.files import write_json
    from lowrank_vit.provenance import source_hash

    plan, folder = read_plan(results, table), results / table.name
    content = table_json(results, table, plan, source_hash())
    write_json(folder / "table.json", content)
    if table.drawing is None:
        _write_table(results, table, plan, content)
    else:
        _write_figure(results, table, plan, content["title"])
    write_index(results)
    return content


def _write_table(results: Path, table: Table, plan: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    from experiments.details import details, on_imagenet
    from experiments.page import page
    from experiments.plots import draw_plot, save_figure
    from lowrank_vit.files import write_text

    folder, command = results / table.name, f"python -m experiments run {table.name}"
    pictures = table.pictures or {PLOT: draw_plot}
    write_text(folder / "table.md", markdown(content, command, list(pictures)))
    write_text(folder / "table.csv", csv_text(content))
    write_text(folder / "table.tex", latex(content, table.name))
    write_text(folder / "table.html", page(content, details(results, table, plan), on_imagenet(plan), command))
    for name, draw in pictures.items():
        save_figure(folder / name, draw(content))


def _write_figure(results: Path, table: Table, plan: Mapping[str, Any], title: str) -> None:
    from experiments.plots import save_figure
    from lowrank_vit.files import write_json

    assert table.drawing is not None
    found = finished(results, plan)
    write_json(results / table.name / f"{table.name}.json", {"title": title, "rows": found})
    if found:
        save_figure(results / table.name / table.name, table.draw(found, title))
