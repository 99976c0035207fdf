"""Draw Table 1, and say in words when Z helps and when its budget is better spent on rank."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report import styles
from experiments.report.plots import add_grid, add_key, key
from experiments.report.uncertainty import Row, images_of
from experiments.tables.table1 import KINDS

LABELS = {kind: label for kind, (label, *_) in KINDS.items()}
BASES = {"representative": "SVD on the mean image", "whitened_normalised": "whitened (exact)"}
HOLLOW = {"linestyle": "-.", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
SOLVERS: dict[tuple[str, bool], tuple[str, dict[str, Any]]] = {  # and whether by plain gradient descent: label, look
    ("closed_form", False): ("closed_form", {"linestyle": "-"}),
    ("moments", False): ("moments", {"linestyle": "--"}),
    ("minibatch", False): ("minibatch", {"linestyle": ":"}),
    ("minibatch", True): ("minibatch, sgd", HOLLOW),  # which stand alone, where one budget was run
}
STYLES = {kind: styles.STYLES[f"{label}, representative"] for kind, label in LABELS.items()}
ERROR, TOP1 = "relative_error_held_out", "top1"


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Row | None, list[Row]]]:
    """Yield model, base, its row without Z, and the rows with that row's seeds.

    Two draws of images differ by more than a small Z.
    """
    done = [row for row in content["rows"] if row["status"] == "done"]
    for name, group in groupby(done, key=lambda row: row["architecture"]):
        rows = list(group)
        for base in BASES:
            own = [row for row in rows if row["base"] == base]
            none = next((row for row in own if row["z"] is None), None)
            if fair := [row for row in own if none is None or row["seeds"] == none["seeds"]]:
                yield name, base, none, fair


def findings(content: Mapping[str, Any]) -> list[str]:
    """Describe each base and kind of Z in a sentence: error on unseen images and accuracy, against rank instead of Z."""
    said = []
    for name, base, none, rows in _groups(content):
        for kind, label in LABELS.items():
            budgets = [row for row in rows if (row["z"], row["solver"]) == (kind, "closed_form")]
            if budgets and none is not None:
                said.append(f"{name}, {BASES[base]}: {_compare(none, budgets, label)}")
    return said


def _compare(none: Row, rows: Sequence[Row], kind: str) -> str:
    """Compare the best budget of one kind of Z with the same number of parameters spent on rank."""
    best = min(rows, key=lambda row: row[ERROR])
    ratio = best[ERROR] / none[ERROR]
    verdict = "rank helps more" if ratio > 1.01 else "Z helps more" if ratio < 0.99 else "no difference in error"
    return (
        f"{kind} Z in closed form, at best at {100 * best['budget']:g} %: error on unseen images {best[ERROR]:.4f} against "
        f"{none[ERROR]:.4f} with rank instead ({ratio:.2f} times), top-1 {best[TOP1]:.1f} against {none[TOP1]:.1f}: {verdict}"
    )


def draw(content: Mapping[str, Any]) -> Figure:
    """Draw error on unseen images, and accuracy, against Z's budget: a column for each model and base."""
    groups = list(_groups(content))
    figure = Figure(figsize=(max(3.9 * len(groups), 6.0), 7.0), layout="constrained")
    if not groups:
        figure.suptitle(f"{content['title']}: nothing measured yet", fontsize=11)
        return figure
    panels = figure.subplots(2, len(groups), squeeze=False, sharex=True)
    for (name, base, none, rows), column in zip(groups, panels.T, strict=True):
        column[0].set_title(f"{name}: {rows[0]['model']}\nbase: {BASES[base]}", fontsize=9)
        for panel, field in zip(column, (ERROR, TOP1), strict=True):
            _draw_panel(panel, rows, none, field)
        column[1].set_xlabel("Z's budget, % of a layer's weights")
    panels[0, 0].set_ylabel("relative error on unseen images")
    panels[1, 0].set_ylabel("top-1, %")
    handles = [
        key("no Z: all of it rank", color="0.4", linewidth=2.5, alpha=0.5),
        *(key(LABELS[kind], marker=style.marker, color=styles.colour_of(style)) for kind, style in STYLES.items()),
        *(key(f"solver: {name}", color="0.3", **look) for name, look in SOLVERS.values()),
    ]
    add_key(figure, handles, columns=4, title=textwrap.fill(images_of(content["rows"]), 45 * len(groups)))
    title = f"{content['title']}; every point has the same number of parameters"
    figure.suptitle(textwrap.fill(title, 38 * len(groups)), fontsize=11)
    return figure


def _draw_panel(panel: Axes, rows: Sequence[Row], none: Row | None, field: str) -> None:
    if none is not None:
        panel.axhline(none[field], color="0.4", linewidth=2.5, alpha=0.5, zorder=0)
    for kind, style in STYLES.items():
        for (solver, plain), (_, look) in SOLVERS.items():
            found = [row for row in rows if (row["z"], row["solver"]) == (kind, solver)]
            found = [row for row in found if (row.get("optimizer") == "sgd") == plain]
            curve = sorted(found, key=lambda row: row["budget"])
            points = [100 * row["budget"] for row in curve], [row[field] for row in curve]
            own = {**look, "marker": style.marker, "color": styles.colour_of(style), "markersize": 4, "linewidth": 1.2}
            panel.plot(*points, **own)
    panel.set_xscale("log")
    panel.set_xticks([1, 2.5, 5, 10], labels=["1", "2.5", "5", "10"])
    panel.minorticks_off()
    if field == ERROR:
        panel.set_yscale("log")
        for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            ticks("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
    add_grid(panel)
