"""Write the files of a table: JSON, Markdown, CSV, LaTeX, a page and its pictures."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.report import ablation
from experiments.report.page import page
from experiments.report.plots import draw_plot, draw_sizes, save_figure
from experiments.report.rows import commands, finished, table_json
from experiments.report.texts import csv_text, latex, markdown
from experiments.runner.plan import read_plan
from experiments.tables.rows import Table
from lowrank_vit.runtime.files import write_json, write_text

PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {  # of the content of ``table.json``
    "accuracy_vs_params": draw_plot,
    "front_vs_params": partial(draw_plot, front=True),
    "front_vs_macs": partial(draw_plot, against="macs", front=True),
    "accuracy_vs_size": draw_sizes,
    "error_vs_budget": ablation.draw,
}


def write_report(results: Path, table: Table) -> dict[str, Any]:
    """Render the last run of the table into its folder among the results; returns the content of ``table.json``.

    Raises ``InputError`` where the table was never run.
    """
    plan, folder = read_plan(results, table), results / table.name
    content = table_json(results, table, plan)
    write_json(folder / "table.json", content)
    if table.drawing is not None:
        measured = finished(results, plan)
        write_json(folder / f"{table.name}.json", {"title": content["title"], "rows": measured})
        if measured:
            drawing = import_module(f"experiments.report.drawing.{table.drawing}")
            save_figure(folder / table.name, drawing.draw(measured, content["title"]))
        return content
    command, pictures = plan.get("command"), [f"{name}.png" for name in table.pictures]  # earlier plans have no command
    write_text(folder / "table.md", markdown(content, command, table.pictures))
    write_text(folder / "table.csv", csv_text(content))
    write_text(folder / "table.tex", latex(content, table.name))
    write_text(folder / "table.html", page(content, commands(table, plan), command, pictures))
    for name in table.pictures:
        save_figure(folder / name, PICTURES[name](content))
    return content
