"""Figure 3."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.drawing import (
    CLOSED_FORM,
    GRADIENT,
    REPRESENTATIVE,
    SIZE,
    SVD,
    WHITENED,
    Results,
    add_key,
    architecture,
    counted,
    finish,
    key,
    mean,
    new_figure,
)

HOLLOW = (REPRESENTATIVE[0], ":", REPRESENTATIVE[2])
METHODS = {  # label, style, face of the markers
    "svd": ("plain SVD", SVD, None),
    "before": ("mean-input SVD before Z (5 % fewer parameters)", HOLLOW, "white"),
    "rank": ("mean-input SVD, Z's budget as rank", REPRESENTATIVE, None),
    "closed_form": ("mean-input SVD + Z, closed form", CLOSED_FORM, None),
    "gradient": ("mean-input SVD + Z, Adam", GRADIENT, None),
    "exact": ("whitened SVD (exact)", WHITENED, None),
}
COLUMNS = 2


def draw(results: Results, title: str) -> Figure:
    """A panel for each model: the error of every method in every block, on unseen images."""
    notes = f"mean over unseen images of ‖XW - XW'‖² / ‖XW‖²; {counted(r for own in results.values() for r in own)}"
    columns = min(COLUMNS, len(results))
    lines = math.ceil(len(results) / columns)
    figure = new_figure(title, notes, results, 1.4 + 2.3 * lines)
    for index, own in enumerate(results.values()):
        panel = figure.add_subplot(lines, columns, index + 1)
        _draw_model(panel, own)
        panel.set_title(architecture(own), fontsize=SIZE)
        finish(panel)
    add_key(figure, _entries(), columns=2)
    return figure


def _draw_model(panel: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    for method, (_, (marker, line, colour), face) in METHODS.items():
        errors = mean(results, "methods", method, "unseen")
        face = colour if face is None else face
        style: dict[str, Any] = {"marker": marker, "linestyle": line, "color": colour, "markerfacecolor": face}
        panel.plot(range(len(errors)), errors, markersize=4, linewidth=1, **style)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("block", fontsize=SIZE)
    panel.set_ylabel("relative squared error", fontsize=SIZE)


def _entries() -> list[Line2D]:
    return [
        key(label, marker=marker, linestyle=line, color=colour, markerfacecolor=face or colour, markersize=4)
        for label, (marker, line, colour), face in METHODS.values()
    ]
