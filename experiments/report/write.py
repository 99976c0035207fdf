"""Write the files of a table: JSON, Markdown, CSV, LaTeX, a page and its pictures."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.report.latex import latex
from experiments.report.markdown import csv_text, markdown
from experiments.report.rows import finished, table_json
from experiments.runner.plan import read_plan
from experiments.tables.rows import Table


def write_report(results: Path, table: Table) -> dict[str, Any]:
    """Render the last run of the table into its folder among the results; returns the content of ``table.json``.

    Raises ``InputError`` where the table was never run.
    """
    from lowrank_vit.runtime.files import write_json

    plan, folder = read_plan(results, table), results / table.name
    content = table_json(results, table, plan)
    write_json(folder / "table.json", content)
    if table.drawing is None:
        _write_table(results, table, plan, content)
    else:
        _write_figure(results, table, plan, content["title"])
    return content


def _write_table(results: Path, table: Table, plan: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    from experiments.report.details import commands
    from experiments.report.page import page
    from experiments.report.pictures import PICTURES
    from experiments.report.plots import save_figure
    from lowrank_vit.runtime.files import write_text

    folder, command = results / table.name, plan.get("command")  # earlier versions did not keep it
    write_text(folder / "table.md", markdown(content, command, table.pictures))
    write_text(folder / "table.csv", csv_text(content))
    write_text(folder / "table.tex", latex(content, table.name))
    pictures = [f"{name}.png" for name in table.pictures]
    write_text(folder / "table.html", page(content, commands(table, plan), command, pictures))
    for name in table.pictures:
        save_figure(folder / name, PICTURES[name](content))


def _write_figure(results: Path, table: Table, plan: Mapping[str, Any], title: str) -> None:
    from experiments.report.plots import save_figure
    from lowrank_vit.runtime.files import write_json

    measured = finished(results, plan)
    write_json(results / table.name / f"{table.name}.json", {"title": title, "rows": measured})
    if measured:
        drawing = import_module(f"experiments.report.drawing.{table.drawing}")
        save_figure(results / table.name / table.name, drawing.draw(measured, title))
