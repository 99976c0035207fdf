"""Figure 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.drawing import REPRESENTATIVE, SIZE, SVD, WHITENED, Results, counted, finish, mean, new_figure

METHODS = {
    "svd": ("plain SVD", SVD, "the energy of W"),
    "representative": (
        "activation-aware, mean input (the paper)",
        REPRESENTATIVE,
        "the energy of the mean input's output",
    ),
    "whitened": ("activation-aware, whitened (exact)", WHITENED, None),
}
MARKERS = 8  # of the unseen images on a curve
FLOOR = -0.1  # where panels end; a curve below is worse than no layer at all


def draw(results: Results, title: str) -> Figure:
    """A row of panels for each model, a panel for each layer of its first block."""
    notes = f"energy kept: 1 - ||XW - XW'||² / ||XW||², X all tokens of {counted(r for own in results.values() for r in own)}"
    figure = new_figure(title, notes, results, 1.0 + 1.55 * len(results) + 0.6)
    layers = max(len(own[0]["measured"]["layers"]) for own in results.values())
    panels = figure.subplots(len(results), layers, squeeze=False, sharey=True)
    for line, own in enumerate(results.values()):
        for column, layer in enumerate(own[0]["measured"]["layers"]):
            _draw_layer(panels[line][column], own, layer)
            n, d = own[0]["measured"]["layers"][layer]["shape"]
            finish(panels[line][column], f"{layer}, {n} to {d}")
            panels[line][column].set_xlabel("rank", fontsize=SIZE)
        panels[line][0].set_ylabel(f"{own[0]['job']['model'].partition('.')[0]}\nenergy kept", fontsize=SIZE)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False, fontsize=SIZE)
    return figure


def _draw_layer(panel: Axes, results: Sequence[Mapping[str, Any]], layer: str) -> None:
    measured = results[0]["measured"]["layers"][layer]
    panel.axvline(measured["break_even"], color="0.75", linewidth=0.8, zorder=0)
    panel.set_ylim(FLOOR, 1.05)
    panel.set_xlim(0, max(measured["methods"]["svd"]["ranks"]))
    for method, (_, (marker, line, colour), own) in METHODS.items():
        ranks = measured["methods"][method]["ranks"]
        path = ("layers", layer, "methods", method)
        panel.plot(ranks, mean(results, *path, "calibration"), linestyle=line, color=colour, linewidth=1.4)
        few = sorted({round(index * (len(ranks) - 1) / MARKERS) for index in range(MARKERS + 1)})
        unseen = mean(results, *path, "unseen")[few]
        panel.plot(
            [ranks[index] for index in few], unseen, marker, color=colour, markersize=3.5, markerfacecolor="white"
        )
        if own:
            panel.plot(ranks, mean(results, *path, "own"), linestyle="-", color=colour, linewidth=0.6)


def _legend() -> list[Line2D]:
    handles = []
    for label, (marker, line, colour), _ in METHODS.values():
        style: dict[str, Any] = {"marker": marker, "markersize": 3.5, "markerfacecolor": "white", "linewidth": 1.4}
        handles.append(Line2D([], [], linestyle=line, color=colour, label=label, **style))
    handles.append(Line2D([], [], linestyle="none", marker="o", color="0.4", markerfacecolor="white", markersize=3.5))
    handles[-1].set_label("lines: calibration images, markers: unseen")
    for _, (_, _, colour), own in METHODS.values():
        if own:
            handles.append(Line2D([], [], linestyle="-", linewidth=0.6, color=colour, label=f"thin: {own}"))
    handles.append(Line2D([], [], linestyle="-", color="0.75", linewidth=0.8, label="factors hold as much as W"))
    return handles
