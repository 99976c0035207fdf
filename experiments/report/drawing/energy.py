"""Draw figure 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.report.drawing.panels import (
    REPRESENTATIVE,
    SIZE,
    SVD,
    WHITENED,
    Results,
    architecture,
    counted,
    finish,
    key,
    mean,
    new_figure,
)
from experiments.report.plots import add_key

METHODS = {
    "svd": ("plain SVD", SVD, "the energy of W"),
    "representative": (
        "activation-aware, mean input (the paper)",
        REPRESENTATIVE,
        "the energy of the mean input's output",
    ),
    "whitened": ("activation-aware, whitened (exact)", WHITENED, None),
}
THIN = 0.7  # points, the lines of what a method counts itself
MARKERS = 8  # of the unseen images on a curve
FLOOR = -0.1  # where panels end; a curve below is worse than no layer at all


def draw(results: Results, title: str) -> Figure:
    """Draw a row of panels for each model, a panel for each layer of its first block."""
    images = counted(result for seeds in results.values() for result in seeds)
    notes = f"energy kept: 1 - ‖XW - XW'‖² / ‖XW‖², X: all tokens of {images}"
    figure = new_figure(title, notes, results, 1.0 + 1.55 * len(results) + 0.6)
    layers = max(len(seeds[0]["measured"]["layers"]) for seeds in results.values())
    panels = figure.subplots(len(results), layers, squeeze=False, sharey=True)
    for line, seeds in enumerate(results.values()):
        for column, layer in enumerate(seeds[0]["measured"]["layers"]):
            _draw_layer(panels[line][column], seeds, layer)
            n, d = seeds[0]["measured"]["layers"][layer]["shape"]
            panels[line][column].set_title(f"{layer}, {n} to {d}", fontsize=SIZE)
            finish(panels[line][column])
        panels[line][0].set_ylabel(f"{architecture(seeds)}\nenergy kept", fontsize=SIZE)
    for panel in panels[-1]:
        panel.set_xlabel("rank", fontsize=SIZE)
    add_key(figure, _entries(), columns=2)
    return figure


def _draw_layer(panel: Axes, results: Sequence[Mapping[str, Any]], layer: str) -> None:
    measured = results[0]["measured"]["layers"][layer]
    panel.axvline(measured["break_even"], color="0.75", linewidth=0.8, zorder=0)
    panel.set_ylim(FLOOR, 1.05)
    panel.set_xlim(0, max(measured["methods"]["svd"]["ranks"]))
    for method, (_, (marker, line, colour), counts) in METHODS.items():
        ranks = measured["methods"][method]["ranks"]
        path = ("layers", layer, "methods", method)
        panel.plot(ranks, mean(results, *path, "calibration"), linestyle=line, color=colour, linewidth=1.4)
        few = sorted({round(index * (len(ranks) - 1) / MARKERS) for index in range(MARKERS + 1)})
        unseen = mean(results, *path, "unseen")[few]
        panel.plot(
            [ranks[index] for index in few], unseen, marker, color=colour, markersize=3.5, markerfacecolor="white"
        )
        if counts:
            panel.plot(ranks, mean(results, *path, "own"), linestyle=line, color=colour, linewidth=THIN)


def _entries() -> list[Line2D]:
    points: dict[str, Any] = {"markersize": 3.5, "markerfacecolor": "white"}
    entries = [
        key(label, linestyle=line, color=colour, marker=marker, linewidth=1.4, **points)
        for label, (marker, line, colour), _ in METHODS.values()
    ]
    entries.append(
        key("lines: calibration images, markers: unseen", linestyle="none", marker="o", color="0.4", **points)
    )
    for _, (_, line, colour), counts in METHODS.values():
        if counts:
            entries.append(key(f"thin: kept of {counts}", linestyle=line, linewidth=THIN, color=colour))
    return [*entries, key("vertical: the factors are as large as W", color="0.75", linewidth=0.8)]
