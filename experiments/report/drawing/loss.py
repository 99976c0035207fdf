"""Draw figure B: the predicted increase of the loss against the measured one, a point for each part and share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing.panels import WIDTH, Results, architecture, counted, finish, mean, new_figure
from experiments.report.plots import add_key, key
from lowrank_vit.records.sites import HIDDEN, QUERY_KEY, VALUE

PARTS = {QUERY_KEY: ("o", "queries and keys"), VALUE: ("s", "values"), HIDDEN: ("^", "hidden units")}
SHADES = ("0.75", "0.5", "0.0")  # darker: more is removed
COLUMNS = 2
LEAST = 1e-7  # nats: below, float32 models differ by rounding


def draw(results: Results, title: str) -> Figure:
    """Draw a panel for each model; on the diagonal the prediction is right."""
    lines = -(-len(results) // COLUMNS)
    notes = f"KL(dense || compressed) in nats, one part reduced; {counted(results)}"
    figure = new_figure(title, notes, results, 1.0 + lines * WIDTH / COLUMNS * 0.85 + 0.5)
    for index, seeds in enumerate(results.values()):
        _draw_model(figure.add_subplot(lines, COLUMNS, index + 1), seeds)
    marks = [key(text, linestyle="none", marker=marker, color="0.0") for marker, text in PARTS.values()]
    removed = next(iter(results.values()))[0]["measured"]["removed"]
    shades = [
        key(f"{percent} % removed", linestyle="none", marker="o", color=shade)
        for percent, shade in zip(removed, SHADES, strict=True)
    ]
    add_key(figure, [*marks, *shades, key("predicted = measured", color="0.75", linewidth=0.8)], columns=4)
    return figure


def _draw_model(panel: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    measured = results[0]["measured"]
    every = []
    for name in measured["parts"]:
        marker, _ = PARTS[name.rpartition(".")[2]]
        both = [np.maximum(mean(results, "parts", name, kind), LEAST) for kind in ("predicted", "measured")]
        every.append(both)
        for x, y, shade in zip(*both, SHADES, strict=True):
            panel.plot(x, y, marker, color=shade, markersize=3.5, linestyle="none")
    ends = [np.min(every), np.max(every)]
    panel.plot(ends, ends, color="0.75", linewidth=0.8, zorder=0)
    panel.set_xscale("log")
    panel.set_yscale("log")
    correlation = float(mean(results, "rank_correlation"))
    finish(panel, f"{architecture(results)}: rank correlation {correlation:.3f}", "predicted", "measured")
