"""Look up what draws the pictures of a table, by the names that it gives."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from experiments.report import ablation
from experiments.report.plots import draw_plot
from experiments.report.size_plot import draw_sizes

PICTURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {  # of the content of ``table.json``
    "accuracy_vs_params": draw_plot,
    "front_vs_params": partial(draw_plot, front=True),
    "front_vs_macs": partial(draw_plot, against="macs", front=True),
    "accuracy_vs_size": draw_sizes,
    "error_vs_budget": ablation.draw,
}
