"""Draw figure 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing import panels
from experiments.report.drawing.panels import SIZE, Results, mean
from experiments.report.plots import add_key, key

METHODS = {  # label, look, and what the method counts itself
    "svd": ("plain SVD", panels.SVD, "the energy of W"),
    "representative": (
        "activation-aware, mean input (the paper)",
        panels.MEAN,
        "the energy of the mean input's output",
    ),
    "whitened": ("activation-aware, whitened (exact)", panels.WHITENED, None),
}
WIDE, THIN = {"linewidth": 1.4, "marker": ""}, {"linewidth": 0.7, "marker": ""}  # thin: what a method counts itself
MARKERS = 8  # of the unseen images on a curve
POINTS: dict[str, Any] = {"markersize": 3.5, "markerfacecolor": "white"}
FLOOR = -0.1  # where panels end; a curve below is worse than no layer at all


def draw(results: Results, title: str) -> Figure:
    """Draw a row of panels for each model, a panel for each layer of its first block."""
    notes = f"energy kept: 1 - ‖XW - XW'‖² / ‖XW‖², X: all tokens of {panels.counted(results)}"
    figure = panels.new_figure(title, notes, results, 1.0 + 1.55 * len(results) + 0.6)
    layers = max(len(seeds[0]["measured"]["layers"]) for seeds in results.values())
    grid = figure.subplots(len(results), layers, squeeze=False, sharey=True)
    for line, seeds in zip(grid, results.values(), strict=True):
        for panel, (layer, measured) in zip(line, seeds[0]["measured"]["layers"].items(), strict=False):
            _draw_layer(panel, seeds, layer)
            n, d = measured["shape"]
            panels.finish(panel, f"{layer}, {n} to {d}")
        line[0].set_ylabel(f"{panels.architecture(seeds)}\nenergy kept", fontsize=SIZE)
    for panel in grid[-1]:
        panel.set_xlabel("rank", fontsize=SIZE)
    counted = [(look, counts) for _, look, counts in METHODS.values() if counts]
    entries = [
        *(key(label, **look | {"linewidth": 1.4}, **POINTS) for label, look, _ in METHODS.values()),
        key("lines: calibration images, markers: unseen", linestyle="none", marker="o", color="0.4", **POINTS),
        *(key(f"thin: kept of {counts}", **look | THIN) for look, counts in counted),
        key("vertical: the factors are as large as W", color="0.75", linewidth=0.8),
    ]
    add_key(figure, entries, columns=2)
    return figure


def _draw_layer(panel: Axes, results: Sequence[Mapping[str, Any]], layer: str) -> None:
    measured = results[0]["measured"]["layers"][layer]
    panel.axvline(measured["break_even"], color="0.75", linewidth=0.8, zorder=0)
    panel.set_ylim(FLOOR, 1.05)
    panel.set_xlim(0, max(measured["methods"]["svd"]["ranks"]))
    for method, (_, look, counts) in METHODS.items():
        ranks, path = measured["methods"][method]["ranks"], ("layers", layer, "methods", method)
        panel.plot(ranks, mean(results, *path, "calibration"), **look | WIDE)
        few = sorted({round(index * (len(ranks) - 1) / MARKERS) for index in range(MARKERS + 1)})
        unseen = mean(results, *path, "unseen")[few]
        panel.plot([ranks[index] for index in few], unseen, **look | {"linestyle": "none"}, **POINTS)
        if counts:
            panel.plot(ranks, mean(results, *path, "own"), **look | THIN)
