"""Draw the pictures of a table, a panel for each architecture."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.report.styles import Look, colour_of, model_of, mpl, series_of, styles_of
from experiments.report.uncertainty import Row, fewer_seeds, images_of, marked
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.runtime.files import replacing

PANELS = 2  # in a line
SIZE = 8  # points, of what is written small
FIELDS, SPREADS = ("top1_before_finetune", "top1"), ("top1_before_std", "top1_std")
WIDE, MANY = 8.4, 10  # inches, and methods
KEY = 0.7  # inches that a figure has for its legend
PALE = 0.35  # opacity of a mark of fewer seeds than the others
NAMES = {"params": "parameters", "macs": "multiply-accumulates"}
UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
FRONT: dict[str, Any] = {"color": "0.85", "linewidth": 5, "zorder": 0.5, "solid_joinstyle": "miter"}


def save_figure(stem: Path, figure: Figure, kinds: Sequence[str] = ("png", "pdf")) -> None:
    """Write ``stem.png`` and ``stem.pdf``, or other ``kinds``."""
    for kind in kinds:
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
    styles = styles_of([row["method"] for row in measured if row["reduction"]])
    fewer = fewer_seeds(measured)
    figure, panels = _panels(measured, WIDE if len(styles) > MANY else 0.0)  # so that a long legend has two columns
    for panel, own in panels:
        largest = max(row[f"{against}_dense"] for row in own)
        unit, label = next((each for each in UNITS if largest >= each[0]), UNITS[-1])
        _draw_panel(panel, own, styles, fewer, against, unit)
        if front:
            _draw_front(panel, own, against, unit)
        panel.set_xlabel(f"{NAMES[against]}, {label}")
    entries = _legend(styles, measured, fewer) + ([key("Pareto front", **FRONT)] if front else [])
    said = "some results are stale" if any(row["stale"] for row in measured) else ""
    return _explained(figure, measured, entries, 3, table["title"], said)


def draw_sizes(table: Mapping[str, Any]) -> Figure:
    """Draw top-1 against the size of the file: a panel for each architecture, a line for each model or method."""
    done = [row for row in table["rows"] if row["status"] == "done"]
    measured = [row for row in map(_of_file, done) if row["file_bytes"] is not None]
    styles = styles_of([series_of(row) for row in measured])
    figure, panels = _panels(measured)
    for panel, rows in panels:
        unit, label = (2**20, "MiB") if max(row["file_bytes"] for row in rows) >= 2**20 else (2**10, "KiB")
        for series in dict.fromkeys(map(series_of, rows)):
            own = sorted((row for row in rows if series_of(row) == series), key=lambda row: row["file_bytes"])
            _draw_sizes(panel, own, styles[series], unit)
        panel.margins(y=0.12)
        panel.set_xlabel(f"file on disk, {label}")
    entries = [_entry(style, series) for series, style in styles.items()]
    said = "numbers: bits of a weight" if any(row["bits"] for row in measured) else ""
    return _explained(figure, measured, entries, 4, table["title"], said)


def _panels(rows: Sequence[Row], width: float = 0.0) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Make a figure, at least ``width`` inches wide, with a panel for each architecture; list them with their rows."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["architecture"], []).append(row)
    columns = max(1, min(PANELS, len(by_name)))
    lines = max(1, math.ceil(len(by_name) / columns))
    figure = Figure(figsize=(max(5.2 * columns + 0.6, width), 3.6 * lines + 1.4), layout="constrained")
    panels = [figure.add_subplot(lines, columns, index + 1) for index in range(len(by_name))]
    for panel, (name, own) in zip(panels, by_name.items(), strict=True):
        panel.set_title(f"{name}: {model_of(own)}", fontsize=9)
        panel.set_ylabel("top-1, %")
        add_grid(panel)
    return figure, list(zip(panels, by_name.values(), strict=True))


def _explained(
    figure: Figure, rows: Sequence[Row], entries: Sequence[Line2D], columns: int, title: str, said: str
) -> Figure:
    """Add the legend with what the number of images leaves open, and the title with what is ``said`` of the rows."""
    width = figure.get_figwidth()
    if rows:
        add_key(figure, entries, columns, title=textwrap.fill(images_of(rows), int(13 * width)))
    title = "; ".join(filter(None, (title, said))) if rows else f"{title}: nothing measured yet"
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure


def _of_file(row: Row) -> Row:
    """Return the row for the drawing: one that measured a file of a given size has that file's bytes and top-1."""
    if row.get("stored_bytes") is None:
        return row
    return {**row, "file_bytes": row["stored_bytes"], "top1": row["stored_top1"]}


def _draw_sizes(panel: Axes, rows: Sequence[Row], style: Look, unit: float) -> None:
    x, y = [row["file_bytes"] / unit for row in rows], [row["top1"] for row in rows]
    panel.plot(x, y, markersize=6, **mpl(style))
    place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center"}
    for row, left, top in zip(rows, x, y, strict=True):
        if row["bits"] is not None:
            panel.annotate(str(row["bits"]), (left, top), fontsize=8, color=colour_of(style), **place)


def _before(row: Row) -> Row:
    """Return an untrained row with its accuracy as one before fine-tuning, to stand beside trained rows."""
    if not str(row["protocol"]).startswith("training-free"):
        return row
    return {**row, "top1_before_finetune": row["top1"], "top1_before_std": row["top1_std"], "top1": None}


def add_key(figure: Figure, entries: Sequence[Line2D], columns: int, title: str | None = None) -> None:
    """Add the legend of the whole figure, below its panels, in as many columns as fit; at most ``columns``.

    The figure grows by what the legend takes beyond ``KEY`` inches, so that panels keep their height.
    """
    look: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": SIZE, "title_fontsize": SIZE}
    for count in range(columns, 0, -1):
        legend = figure.legend(handles=entries, ncols=count, title=title, **look)
        taken = legend.get_window_extent()
        if count == 1 or taken.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + max(0.0, taken.height / figure.dpi - KEY))
            return
        legend.remove()


def key(label: str, **style: Any) -> Line2D:
    """Make an entry of a legend."""
    return Line2D([], [], label=label, **style)


def _entry(style: Look, label: str, opacity: float = 1.0) -> Line2D:
    return key(label, markerfacecolor=(colour_of(style), opacity), **mpl(style))


def _legend(styles: Mapping[str, Look], rows: Sequence[Row], fewer: Mapping[str, int]) -> list[Line2D]:
    named = [(row["method"], other["method"]) for row, other in zip(rows, marked(rows), strict=True)]
    names = dict(sorted(named, key=lambda pair: pair[0] == pair[1]))  # unmarked where one of a method's rows is
    handles = [
        key("dense", marker="*", color="black", linestyle="none", markersize=11),
        *(_entry(style, names[method], 1.0 if method == names[method] else PALE) for method, style in styles.items()),
    ]
    apart: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": "0.4"}
    if any(row["top1_before_finetune"] is not None for row in rows):
        handles.append(key("hollow: before fine-tuning", markerfacecolor="white", **apart))
    if fewer:
        counts = " or ".join(f"n={count}" for count in sorted(set(fewer.values())))
        handles.append(key(f"pale: fewer seeds ({counts})", markerfacecolor=("0.4", PALE), **apart))
    return handles


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


def _draw_front(panel: Axes, rows: Sequence[Row], against: str, unit: float) -> None:
    """Draw a pale band from each point that no other beats to the next: filled, hollow, or the dense model's."""
    drawn = [(row[against], row[name]) for row in rows for name in FIELDS]
    drawn += [(row[f"{against}_dense"], row["top1_dense"]) for row in rows]
    front = pareto_front((size / unit, top1) for size, top1 in drawn if top1 is not None)
    panel.step(*zip(*front, strict=True), where="post", **FRONT)


def _draw_panel(
    panel: Axes, rows: Sequence[Row], styles: Mapping[str, Look], fewer: Mapping[str, int], against: str, unit: float
) -> None:
    """Draw one architecture: the dense model, and each method before (hollow) and after (filled) fine-tuning."""
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


def add_grid(panel: Axes) -> None:
    """Add pale lines behind what is drawn."""
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)


def _draw_method(panel: Axes, rows: Sequence[Row], style: Look, sizes: Sequence[float], opacity: float) -> None:
    colour, fills = colour_of(style), ("white", (colour_of(style), opacity))
    for field, spread, fill in zip(FIELDS, SPREADS, fills, strict=True):
        points = [(size, row) for size, row in zip(sizes, rows, strict=True) if row[field] is not None]
        if points:
            panel.errorbar(
                [size for size, _ in points],
                [row[field] for _, row in points],
                yerr=[row[spread] or 0.0 for _, row in points],
                **mpl(style) | {"color": (colour, 0.5 + opacity / 2)},
                markersize=6,
                markerfacecolor=fill,
                markeredgecolor=colour,
                linewidth=1.2 if field == "top1" else 0.5,
                elinewidth=0.8,
                ecolor=(colour, 0.5),  # spreads overlap where methods have one size
            )
