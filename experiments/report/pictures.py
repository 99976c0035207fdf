"""Look up, by the names that a table gives, what draws its pictures and its figure, and what is said of it in words."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from experiments.report import ablation
from experiments.report.drawing import accuracy, compensation, customize, energy, loss
from experiments.report.drawing.panels import Results
from experiments.report.plots import draw_plot
from experiments.report.size_plot import draw_sizes
from experiments.tables.rows import Table

PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {  # of the content of ``table.json``
    "accuracy_vs_params": draw_plot,
    "front_vs_params": partial(draw_plot, front=True),
    "front_vs_macs": partial(draw_plot, against="macs", front=True),
    "accuracy_vs_size": draw_sizes,
    "error_vs_budget": ablation.draw,
}
DRAWINGS: dict[str, Callable[[Results, str], Figure]] = {  # of what jobs measured, and a title
    "accuracy": accuracy.draw,
    "compensation": compensation.draw,
    "customize": customize.draw,
    "energy": energy.draw,
    "loss": loss.draw,
}


def draw_figure(table: Table, results: Results, title: str) -> Figure:
    """Draw what the jobs measured, from row to results, one for each seed. Only where the table has a ``drawing``."""
    assert table.drawing is not None
    return DRAWINGS[table.drawing](results, title)
