"""Draw accuracy against the size of the file."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import add_grid, add_key, entry, said_of_images
from experiments.report.styles import Style, model_of, series_of, styles_of

Row = Mapping[str, Any]


def of_file(row: Row) -> Row:
    """Return the row for the drawing: one that measured a file of a given size has that file's bytes and top-1."""
    if row.get("stored_bytes") is None:
        return row
    return {**row, "file_bytes": row["stored_bytes"], "top1": row["stored_top1"]}


def draw_sizes(table: Mapping[str, Any]) -> Figure:
    """Draw top-1 against the size of the file: a panel for each architecture, a line for each model or method."""
    measured = [row for row in map(of_file, table["rows"]) if row["status"] == "done" and row["file_bytes"] is not None]
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
        add_grid(panel)
    if styles:
        entries = [entry(style, model) for model, style in styles.items()]
        add_key(figure, entries, columns=4, title=said_of_images(measured, width))
    said = "" if names else "nothing measured yet"
    if any(row["bits"] for row in measured):
        said = "numbers: bits of a weight"
    figure.suptitle(textwrap.fill("; ".join(filter(None, (table["title"], said))), int(10 * width)), fontsize=11)
    return figure


def _draw_sizes(panel: Axes, rows: Sequence[Row], style: Style, unit: float) -> None:
    marker, line, colour = style.mpl
    x, y = [row["file_bytes"] / unit for row in rows], [row["top1"] for row in rows]
    panel.plot(x, y, marker=marker, linestyle=line, color=colour, markersize=6)
    for row, left, top in zip(rows, x, y, strict=True):
        if row["bits"] is None:
            continue
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 6), "ha": "center"}
        panel.annotate(str(row["bits"]), (left, top), fontsize=8, color=colour, **place)
