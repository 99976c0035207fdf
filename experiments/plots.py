"""One picture of a table: top-1 against parameters, a panel for each architecture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowrank_vit.files import replacing

Row = Mapping[str, Any]
PANELS = 2  # in a line
SIZE = 8  # points, of what is written small
STYLES = (  # marker, line and colour: each of the three tells the methods apart, the last one also in grey
    ("s", ":", "#757575"),
    ("^", "--", "#C04E00"),
    ("o", "-", "#000000"),
    ("D", "-.", "#0068A8"),
    ("v", (0, (1, 3)), "#007A58"),
    ("P", (0, (6, 2, 1, 2)), "#A8487F"),
    ("X", (0, (2, 3)), "#856900"),
    ("p", (0, (6, 3)), "#5B4BC4"),
)


def save_figure(stem: Path, figure: Figure) -> None:
    """Write ``stem.png`` and ``stem.pdf``."""
    for kind in ("png", "pdf"):
        with replacing(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, dpi=150, format=kind)


def draw_plot(table: Mapping[str, Any]) -> Figure:
    """The measured rows of a table; the paper's numbers are of other images, so they are not in the picture."""
    measured = [row for row in table["rows"] if row["status"] == "done" and row["params"] is not None]
    names = list(dict.fromkeys(row["architecture"] for row in measured))
    methods = list(dict.fromkeys(row["method"] for row in measured if row["reduction"]))
    columns = max(1, min(PANELS, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    width = 5.2 * columns + 0.6
    figure = Figure(figsize=(width, 3.6 * lines + 1.4), layout="constrained")
    for index, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, index + 1)
        _draw_panel(panel, [row for row in measured if row["architecture"] == name], methods)
        panel.set_title(f"{name}: {_model(measured, name)}", fontsize=9)
    if names:
        add_key(figure, _legend(methods, any(row["top1_before_finetune"] is not None for row in measured)), columns=3)
    stale = "; some results are stale" if any(row["stale"] for row in measured) else ""
    title = f"{table['title']}{stale}" if names else f"{table['title']}: nothing measured yet"
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure


def add_key(figure: Figure, entries: Sequence[Line2D], columns: int, title: str | None = None) -> None:
    """The legend of the whole figure, below its panels, in as many columns as fit; at most ``columns``."""
    for count in range(columns, 0, -1):
        legend = figure.legend(
            handles=entries,
            loc="outside lower center",
            ncols=count,
            frameon=False,
            fontsize=SIZE,
            title=title,
            title_fontsize=SIZE,
        )
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _model(rows: Sequence[Row], architecture: str) -> str:
    return next(row["model"] for row in rows if row["architecture"] == architecture)


def _style(methods: Sequence[str], method: str) -> tuple[Any, ...]:
    """The same as on the page; past the last one the markers go to other colours."""
    again, index = divmod(methods.index(method), len(STYLES))
    return STYLES[(index + 3 * again) % len(STYLES)][0], *STYLES[index][1:]


def _legend(methods: Sequence[str], tuned: bool) -> list[Line2D]:
    handles = [Line2D([], [], marker="*", color="black", linestyle="none", markersize=11, label="dense")]
    for method in methods:
        marker, line, colour = _style(methods, method)
        handles.append(Line2D([], [], marker=marker, linestyle=line, color=colour, label=method))
    hollow = Line2D([], [], marker="o", linestyle="none", color="0.4", markerfacecolor="white")
    hollow.set_label("hollow: before fine-tuning")
    return [*handles, hollow] if tuned else handles


def _draw_panel(panel: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    """One architecture: the dense model, and each method before (hollow) and after (filled) fine-tuning."""
    largest = max(row["params_dense"] for row in rows)
    unit, label = (1e6, "millions") if largest >= 1e6 else (1e3, "thousands")
    for size, top1 in {(row["params_dense"], row["top1_dense"]) for row in rows if row["top1_dense"] is not None}:
        panel.axhline(top1, color="0.8", linewidth=0.8, zorder=0)
        panel.plot(size / unit, top1, "*", color="black", markersize=12)
    for method in methods:
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["params"])
        _draw_method(panel, own, _style(methods, method), unit)
    panel.set_ylim(max(panel.get_ylim()[0], -1), min(panel.get_ylim()[1], 101.5))  # no accuracy is above 100 %
    panel.set_xlabel(f"parameters, {label}")
    panel.set_ylabel("top-1, %")
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)


def _draw_method(panel: Axes, rows: Sequence[Row], style: tuple[Any, ...], unit: float) -> None:
    marker, line, colour = style
    for field, spread, fill in (("top1_before_finetune", "top1_before_std", "white"), ("top1", "top1_std", colour)):
        points = [row for row in rows if row[field] is not None]
        if points:
            panel.errorbar(
                [row["params"] / unit for row in points],
                [row[field] for row in points],
                yerr=[row[spread] or 0.0 for row in points],
                marker=marker,
                markersize=6,
                markerfacecolor=fill,
                markeredgecolor=colour,
                color=colour,
                linestyle=line if field == "top1" else "none",
                linewidth=1.2,
                elinewidth=0.8,
                ecolor=(colour, 0.5),  # spreads overlap where methods have one size
            )


def draw_sizes(table: Mapping[str, Any]) -> Figure:
    """Top-1 against the size of the file, a panel for each architecture, a line for each model over its bits."""
    measured = [row for row in table["rows"] if row["status"] == "done" and row["file_bytes"] is not None]
    names = list(dict.fromkeys(row["architecture"] for row in measured))
    models = list(dict.fromkeys(_without_bits(row) for row in measured))
    figure = Figure(figsize=(max(5.2 * len(names), 5.8), 4.6), layout="constrained")
    for index, name in enumerate(names):
        panel = figure.add_subplot(1, len(names), index + 1)
        rows = [row for row in measured if row["architecture"] == name]
        unit, label = (2**20, "MiB") if max(row["file_bytes"] for row in rows) >= 2**20 else (2**10, "KiB")
        for model in dict.fromkeys(map(_without_bits, rows)):
            own = sorted((row for row in rows if _without_bits(row) == model), key=lambda row: row["file_bytes"])
            _draw_sizes(panel, own, _style(models, model), unit)
        panel.set_title(f"{name}: {rows[0]['model']}", fontsize=9)
        panel.margins(y=0.12)
        panel.set_xlabel(f"file on disk, {label}")
        panel.set_ylabel("top-1, %")
        panel.grid(visible=True, color="0.92")
        panel.set_axisbelow(True)
    handles = []
    for model in models:
        marker, line, colour = _style(models, model)
        handles.append(Line2D([], [], marker=marker, linestyle=line, color=colour, label=model))
    if handles:
        add_key(figure, handles, columns=4)
    said = "numbers: bits of a weight" if names else "nothing measured yet"
    figure.suptitle(textwrap.fill(f"{table['title']}; {said}", int(52 * max(len(names), 1))), fontsize=11)
    return figure


def _without_bits(row: Row) -> str:
    return str(row["method"]).partition(",")[0]


def _draw_sizes(panel: Axes, rows: Sequence[Row], style: tuple[Any, ...], unit: float) -> None:
    marker, line, colour = style
    x, y = [row["file_bytes"] / unit for row in rows], [row["top1"] for row in rows]
    panel.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=6)
    for row, left, top in zip(rows, x, y, strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center"}
        panel.annotate(str(row["bits"]), (left, top), fontsize=8, color=colour, **place)
