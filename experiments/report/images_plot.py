"""Draw accuracy against the number of images that a method sees."""

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.report.plots import add_key, entry, said_of_images
from experiments.report.styles import Style, model_of, styles_of

Row = Mapping[str, Any]
BEFORE: dict[str, Any] = {"markerfacecolor": "white", "linestyle": (0, (2, 2))}


def draw_images(table: Mapping[str, Any]) -> Figure:
    """Draw top-1 against images: a panel for each architecture and size, a line for each method and one for its start."""
    measured = [row for row in table["rows"] if row["status"] == "done" and row["calibration_images"] is not None]
    panels = list(dict.fromkeys((row["architecture"], row["reduction"]) for row in measured))
    styles = styles_of([row["method"] for row in measured])
    width = max(4.4 * len(panels), 5.8)
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    for index, (name, reduction) in enumerate(panels):
        panel = figure.add_subplot(1, len(panels), index + 1)
        rows = [row for row in measured if (row["architecture"], row["reduction"]) == (name, reduction)]
        _draw_panel(panel, sorted(rows, key=lambda row: row["calibration_images"]), styles)
        panel.set_title(f"{name}, -{100 * reduction:.0f} %: {model_of(rows)}", fontsize=9)
    if panels:
        entries = [entry(style, method) for method, style in styles.items()]
        entries.append(Line2D([], [], label="before the distillation", marker="o", color="0.35", **BEFORE))
        add_key(figure, entries, columns=3, title=said_of_images(measured, width))
    title = table["title"] if panels else f"{table['title']}: nothing measured yet"
    figure.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11)
    return figure


def _draw_panel(panel: Axes, rows: list[Row], styles: Mapping[str, Style]) -> None:
    """Draw one model at one size. Methods that train the same compressed model share the line before training."""
    counts = sorted({row["calibration_images"] for row in rows})
    drawn: set[tuple[int, float]] = set()
    for method, style in styles.items():
        own = [row for row in rows if row["method"] == method]
        marker, line, colour = style.mpl
        x = [row["calibration_images"] for row in own]
        before = [row["top1_before_finetune"] for row in own]
        starts = set(zip(x, before, strict=True))
        if not starts <= drawn:
            panel.plot(x, before, marker=marker, color=colour, **BEFORE)
        drawn |= starts
        panel.plot(x, [row["top1"] for row in own], marker=marker, linestyle=line, color=colour)
    panel.set_xscale("log", base=2)
    panel.set_xticks(counts, [f"{count:,}" for count in counts])
    panel.minorticks_off()
    panel.set_xlabel("images")
    panel.set_ylabel("top-1, %")
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)
