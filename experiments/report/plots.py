"""Draw the pictures of a table, a panel for each architecture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.report.styles import Style, model_of, series_of, styles_of
from experiments.report.uncertainty import fewer_seeds, images_of, marked
from lowrank_vit.runtime.files import replacing

Row = Mapping[str, Any]
PANELS = 2  # in a line
SIZE = 8  # points, of what is written small
FIELDS, SPREADS = ("top1_before_finetune", "top1"), ("top1_before_std", "top1_std")
PALE = 0.35  # opacity of a mark of fewer seeds than the others


def save_figure(stem: Path, figure: Figure) -> None:
    """Write ``stem.png`` and ``stem.pdf``."""
    for kind in ("png", "pdf"):
        with replacing(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, dpi=150, format=kind)


def draw_plot(table: Mapping[str, Any]) -> Figure:
    """Draw the measured rows of a table; the paper's numbers are of other images, so they are not in the picture."""
    measured = [row for row in table["rows"] if row["status"] == "done" and row["params"] is not None]
    tuned = any(row["top1_before_finetune"] is not None for row in measured)
    measured = [_before(row) if tuned else row for row in measured]
    names = list(dict.fromkeys(row["architecture"] for row in measured))
    styles = styles_of([row["method"] for row in measured if row["reduction"]])
    fewer = fewer_seeds(measured)
    columns = max(1, min(PANELS, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    width = 5.2 * columns + 0.6
    figure = Figure(figsize=(width, 3.6 * lines + 1.4), layout="constrained")
    for index, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, index + 1)
        own = [row for row in measured if row["architecture"] == name]
        _draw_panel(panel, own, styles, fewer)
        panel.set_title(f"{name}: {model_of(own)}", fontsize=9)
    if names:
        add_key(figure, _legend(styles, measured, fewer), columns=3, title=_images(measured, width))
    stale = "; some results are stale" if any(row["stale"] for row in measured) else ""
    title = f"{table['title']}{stale}" if names else f"{table['title']}: nothing measured yet"
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure


def _before(row: Row) -> Row:
    """Return a row as one before fine-tuning, if it is not trained at all: beside rows that are, it stands there."""
    if not str(row["protocol"]).startswith("training-free"):
        return row
    return {**row, "top1_before_finetune": row["top1"], "top1_before_std": row["top1_std"], "top1": None}


def _images(rows: Sequence[Row], width: float) -> str:
    """Say what the number of images leaves open, in lines that fit the width in inches."""
    return textwrap.fill(images_of(rows), int(13 * width))


def add_key(figure: Figure, entries: Sequence[Line2D], columns: int, title: str | None = None) -> None:
    """Add the legend of the whole figure, below its panels, in as many columns as fit; at most ``columns``."""
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


def _entry(style: Style, label: str, opacity: float = 1.0) -> Line2D:
    marker, line, colour = style.mpl
    return Line2D([], [], marker=marker, linestyle=line, color=colour, markerfacecolor=(colour, opacity), label=label)


def _legend(styles: Mapping[str, Style], rows: Sequence[Row], fewer: Mapping[str, int]) -> list[Line2D]:
    star = Line2D([], [], marker="*", color="black", linestyle="none", markersize=11, label="dense")
    named = [(row["method"], other["method"]) for row, other in zip(rows, marked(rows), strict=True)]
    names = dict(sorted(named, key=lambda pair: pair[0] == pair[1]))  # unmarked where one of a method's rows is
    handles = [
        star,
        *(_entry(style, names[method], 1.0 if method == names[method] else PALE) for method, style in styles.items()),
    ]
    apart: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": "0.4"}
    if any(row["top1_before_finetune"] is not None for row in rows):
        handles.append(Line2D([], [], markerfacecolor="white", label="hollow: before fine-tuning", **apart))
    if fewer:
        counts = " or ".join(f"n={count}" for count in sorted(set(fewer.values())))
        handles.append(Line2D([], [], markerfacecolor=("0.4", PALE), label=f"pale: fewer seeds ({counts})", **apart))
    return handles


def _draw_panel(panel: Axes, rows: Sequence[Row], styles: Mapping[str, Style], fewer: Mapping[str, int]) -> None:
    """Draw one architecture: the dense model, and each method before (hollow) and after (filled) fine-tuning."""
    largest = max(row["params_dense"] for row in rows)
    unit, label = (1e6, "millions") if largest >= 1e6 else (1e3, "thousands")
    dense = {(row["params_dense"], row["top1_dense"]) for row in rows if row["id"] not in fewer}
    for size, top1 in ((size, top1) for size, top1 in dense if top1 is not None):
        panel.axhline(top1, color="0.8", linewidth=0.8, zorder=0)
        panel.plot(size / unit, top1, "*", color="black", markersize=12)
    for method, style in styles.items():
        of_method = sorted((row for row in rows if row["method"] == method), key=lambda row: row["params"])
        pale = [row for row in of_method if row["id"] in fewer]
        _draw_method(panel, [row for row in of_method if row not in pale], style, unit)
        _draw_method(panel, pale, style, unit, PALE)
    panel.set_ylim(max(panel.get_ylim()[0], -1), min(panel.get_ylim()[1], 101.5))  # no accuracy is above 100 %
    panel.set_xlabel(f"parameters, {label}")
    panel.set_ylabel("top-1, %")
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)


def _draw_method(panel: Axes, rows: Sequence[Row], style: Style, unit: float, opacity: float = 1.0) -> None:
    marker, line, colour = style.mpl
    fills: Any = ("white", (colour, opacity))
    for field, spread, fill in zip(FIELDS, SPREADS, fills, strict=True):
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
                color=(colour, 0.5 + opacity / 2),
                linestyle=line,
                linewidth=1.2 if field == "top1" else 0.5,
                elinewidth=0.8,
                ecolor=(colour, 0.5),  # spreads overlap where methods have one size
            )


def draw_sizes(table: Mapping[str, Any]) -> Figure:
    """Draw top-1 against the size of the file, a panel for each architecture, a line for each model over its bits."""
    measured = [row for row in table["rows"] if row["status"] == "done" and row["file_bytes"] is not None]
    names = list(dict.fromkeys(row["architecture"] for row in measured))
    styles = styles_of([series_of(row) for row in measured])
    width = max(5.2 * len(names), 5.8)
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    for index, name in enumerate(names):
        panel = figure.add_subplot(1, len(names), index + 1)
        rows = [row for row in measured if row["architecture"] == name]
        unit, label = (2**20, "MiB") if max(row["file_bytes"] for row in rows) >= 2**20 else (2**10, "KiB")
        for model in dict.fromkeys(map(series_of, rows)):
            sizes = sorted((row for row in rows if series_of(row) == model), key=lambda row: row["file_bytes"])
            _draw_sizes(panel, sizes, styles[model], unit)
        panel.set_title(f"{name}: {model_of(rows)}", fontsize=9)
        panel.margins(y=0.12)
        panel.set_xlabel(f"file on disk, {label}")
        panel.set_ylabel("top-1, %")
        panel.grid(visible=True, color="0.92")
        panel.set_axisbelow(True)
    if styles:
        add_key(
            figure, [_entry(style, model) for model, style in styles.items()], columns=4, title=_images(measured, width)
        )
    said = "numbers: bits of a weight" if names else "nothing measured yet"
    figure.suptitle(textwrap.fill(f"{table['title']}; {said}", int(10 * width)), fontsize=11)
    return figure


def _draw_sizes(panel: Axes, rows: Sequence[Row], style: Style, unit: float) -> None:
    marker, line, colour = style.mpl
    x, y = [row["file_bytes"] / unit for row in rows], [row["top1"] for row in rows]
    panel.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=6)
    for row, left, top in zip(rows, x, y, strict=True):
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center"}
        panel.annotate(str(row["bits"]), (left, top), fontsize=8, color=colour, **place)
