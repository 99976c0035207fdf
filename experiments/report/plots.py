"""Draw the pictures of a table, a panel for each architecture."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.report.styles import Style, model_of, styles_of
from experiments.report.uncertainty import fewer_seeds, images_of, marked
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.runtime.files import replacing

Row = Mapping[str, Any]
PANELS = 2  # in a line
SIZE = 8  # points, of what is written small
FIELDS, SPREADS = ("top1_before_finetune", "top1"), ("top1_before_std", "top1_std")
WIDE, MANY = 8.4, 10  # inches, and methods
KEY = 0.7  # inches that a figure has for its legend
PALE = 0.35  # opacity of a mark of fewer seeds than the others
NAMES = {"params": "parameters", "macs": "multiply-accumulates"}
UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
FRONT: dict[str, Any] = {"color": "0.85", "linewidth": 5, "zorder": 0.5, "solid_joinstyle": "miter"}


def save_figure(stem: Path, figure: Figure) -> None:
    """Write ``stem.png`` and ``stem.pdf``."""
    for kind in ("png", "pdf"):
        with replacing(stem.with_suffix(f".{kind}")) as temporary:
            figure.savefig(temporary, dpi=150, format=kind)


def draw_plot(table: Mapping[str, Any], against: str = "params", front: bool = False) -> Figure:
    """Draw the measured rows of a table; the paper's numbers are of other images, so they are not in the picture.

    ``against``: ``params`` or ``macs``. Beside parameters, rows that are reduced in something else stay out. ``front``: with
    the Pareto front.
    """
    measured = [row for row in table["rows"] if row["status"] == "done" and row[against] is not None]
    measured = [row for row in measured if against != "params" or row.get("cost") in (None, PARAMETERS)]
    tuned = any(row["top1_before_finetune"] is not None for row in measured)
    measured = [_before(row) if tuned else row for row in measured]
    names = list(dict.fromkeys(row["architecture"] for row in measured))
    styles = styles_of([row["method"] for row in measured if row["reduction"]])
    fewer = fewer_seeds(measured)
    columns = max(1, min(PANELS, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    width = max(5.2 * columns + 0.6, WIDE if len(styles) > MANY else 0.0)  # so that a long legend has two columns
    figure = Figure(figsize=(width, 3.6 * lines + 1.4), layout="constrained")
    for index, name in enumerate(names):
        panel = figure.add_subplot(lines, columns, index + 1)
        own = [row for row in measured if row["architecture"] == name]
        _draw_panel(panel, own, styles, fewer, against)
        if front:
            _draw_front(panel, own, against)
        panel.set_title(f"{name}: {model_of(own)}", fontsize=9)
    if names:
        entries = _legend(styles, measured, fewer) + ([Line2D([], [], label="Pareto front", **FRONT)] if front else [])
        add_key(figure, entries, columns=3, title=said_of_images(measured, width))
    stale = "; some results are stale" if any(row["stale"] for row in measured) else ""
    title = f"{table['title']}{stale}" if names else f"{table['title']}: nothing measured yet"
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure


def _before(row: Row) -> Row:
    """Return an untrained row with its accuracy as one before fine-tuning, to stand beside trained rows."""
    if not str(row["protocol"]).startswith("training-free"):
        return row
    return {**row, "top1_before_finetune": row["top1"], "top1_before_std": row["top1_std"], "top1": None}


def said_of_images(rows: Sequence[Row], width: float) -> str:
    """Explain what the number of images leaves open, in lines that fit the width in inches."""
    return textwrap.fill(images_of(rows), int(13 * width))


def add_key(figure: Figure, entries: Sequence[Line2D], columns: int, title: str | None = None) -> None:
    """Add the legend of the whole figure, below its panels, in as many columns as fit; at most ``columns``.

    The figure grows by what the legend takes beyond ``KEY`` inches, so that panels keep their height.
    """
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
        taken = legend.get_window_extent()
        if count == 1 or taken.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + max(0.0, taken.height / figure.dpi - KEY))
            return
        legend.remove()


def entry(style: Style, label: str, opacity: float = 1.0) -> Line2D:
    """Make the entry of a method in the legend."""
    marker, line, colour = style.mpl
    return Line2D([], [], marker=marker, linestyle=line, color=colour, markerfacecolor=(colour, opacity), label=label)


def _legend(styles: Mapping[str, Style], rows: Sequence[Row], fewer: Mapping[str, int]) -> list[Line2D]:
    star = Line2D([], [], marker="*", color="black", linestyle="none", markersize=11, label="dense")
    named = [(row["method"], other["method"]) for row, other in zip(rows, marked(rows), strict=True)]
    names = dict(sorted(named, key=lambda pair: pair[0] == pair[1]))  # unmarked where one of a method's rows is
    handles = [
        star,
        *(entry(style, names[method], 1.0 if method == names[method] else PALE) for method, style in styles.items()),
    ]
    apart: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": "0.4"}
    if any(row["top1_before_finetune"] is not None for row in rows):
        handles.append(Line2D([], [], markerfacecolor="white", label="hollow: before fine-tuning", **apart))
    if fewer:
        counts = " or ".join(f"n={count}" for count in sorted(set(fewer.values())))
        handles.append(Line2D([], [], markerfacecolor=("0.4", PALE), label=f"pale: fewer seeds ({counts})", **apart))
    return handles


def _unit(rows: Sequence[Row], against: str) -> tuple[float, str]:
    """Choose the unit of an axis, and its name."""
    largest = max(row[f"{against}_dense"] for row in rows)
    return next(((unit, label) for unit, label in UNITS if largest >= unit), UNITS[-1])


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """List the points that no other beats: as small or smaller, and as accurate or more.

    >>> pareto_front([(1.0, 60.0), (2.0, 50.0), (3.0, 80.0), (3.0, 70.0)])
    [(1.0, 60.0), (3.0, 80.0)]
    """
    best: list[tuple[float, float]] = []
    for size, top1 in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or top1 > best[-1][1]:
            best.append((size, top1))
    return best


def _draw_front(panel: Axes, rows: Sequence[Row], against: str) -> None:
    """Draw a pale band from each point that no other beats to the next: filled, hollow, or the dense model's."""
    unit, _ = _unit(rows, against)
    drawn = ((row[against] / unit, row[name]) for row in rows for name in ("top1", "top1_before_finetune"))
    points = {(size, top1) for size, top1 in drawn if top1 is not None}
    dense = {(row[f"{against}_dense"] / unit, row["top1_dense"]) for row in rows if row["top1_dense"] is not None}
    sizes, tops = zip(*pareto_front(points | dense), strict=True)
    panel.step(sizes, tops, where="post", **FRONT)


def _draw_panel(
    panel: Axes, rows: Sequence[Row], styles: Mapping[str, Style], fewer: Mapping[str, int], against: str
) -> None:
    """Draw one architecture: the dense model, and each method before (hollow) and after (filled) fine-tuning."""
    unit, label = _unit(rows, against)
    dense = {(row[f"{against}_dense"], row["top1_dense"]) for row in rows if row["id"] not in fewer}
    for size, top1 in ((size, top1) for size, top1 in dense if top1 is not None):
        panel.axhline(top1, color="0.8", linewidth=0.8, zorder=0)
        panel.plot(size / unit, top1, "*", color="black", markersize=12)
    for method, style in styles.items():
        of_method = sorted((row for row in rows if row["method"] == method), key=lambda row: row[against])
        pale = [row for row in of_method if row["id"] in fewer]
        for some, opacity in (([row for row in of_method if row not in pale], 1.0), (pale, PALE)):
            _draw_method(panel, some, style, [row[against] / unit for row in some], opacity)
    panel.set_ylim(max(panel.get_ylim()[0], -1), min(panel.get_ylim()[1], 101.5))  # no accuracy is above 100 %
    panel.set_xlabel(f"{NAMES[against]}, {label}")
    panel.set_ylabel("top-1, %")
    add_grid(panel)


def add_grid(panel: Axes) -> None:
    """Add pale lines behind what is drawn."""
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)


def _draw_method(panel: Axes, rows: Sequence[Row], style: Style, sizes: Sequence[float], opacity: float = 1.0) -> None:
    marker, line, colour = style.mpl
    fills: Any = ("white", (colour, opacity))
    for field, spread, fill in zip(FIELDS, SPREADS, fills, strict=True):
        points = [(size, row) for size, row in zip(sizes, rows, strict=True) if row[field] is not None]
        if points:
            panel.errorbar(
                [size for size, _ in points],
                [row[field] for _, row in points],
                yerr=[row[spread] or 0.0 for _, row in points],
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
