"""What Table 1 says: its picture, and in words when Z helps and when its budget is better spent on rank."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
LABELS = {
    "low_rank": "low-rank",
    "diagonal": "diagonal",
    "structured_sparse": "sparse, structured",
    "unstructured_sparse": "sparse, unstructured",
}
BASES = {"representative": "base: SVD on the mean image", "whitened_normalised": "base: whitened (exact)"}
SOLVERS: dict[str, Any] = {"closed_form": "-", "moments": "--", "minibatch": ":"}
STYLES = {
    "low_rank": ("o", "#000000"),
    "diagonal": ("s", "#999999"),
    "structured_sparse": ("^", "#D55E00"),
    "unstructured_sparse": ("D", "#0072B2"),
}
ERROR, TOP1 = "relative_error_held_out", "top1"


def _measured(content: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows that were run, by architecture."""
    rows = [row for row in content["rows"] if row["status"] == "done"]
    return {name: list(own) for name, own in groupby(rows, key=lambda row: row["architecture"])}


def _without(rows: Sequence[Row], base: str) -> Row | None:
    return next((row for row in rows if row["base"] == base and row["z"] is None), None)


def findings(content: Mapping[str, Any]) -> list[str]:
    """A sentence for each base and kind of Z: the error on unseen images and the accuracy, beside rank instead of Z."""
    said = []
    for name, rows in _measured(content).items():
        for base, label in BASES.items():
            none = _without(rows, base)
            for kind in LABELS:
                own = [row for row in rows if (row["base"], row["z"], row["solver"]) == (base, kind, "closed_form")]
                if own and none is not None:
                    said.append(f"{name}, {label.removeprefix('base: ')}: {_compare(none, own, LABELS[kind])}")
    return said


def _compare(none: Row, rows: Sequence[Row], kind: str) -> str:
    """The best budget of one kind of Z against the same number of parameters spent on rank."""
    best = min(rows, key=lambda row: row[ERROR])
    ratio = best[ERROR] / none[ERROR]
    verdict = "rank helps more" if ratio > 1.01 else "Z helps more" if ratio < 0.99 else "no difference in error"
    return (
        f"{kind} Z in closed form, at best at {100 * best['budget']:g} %: error on unseen images {best[ERROR]:.4f} against "
        f"{none[ERROR]:.4f} with rank instead ({ratio:.2f} times), top-1 {best[TOP1]:.1f} against {none[TOP1]:.1f}: {verdict}"
    )


def draw(content: Mapping[str, Any]) -> Figure:
    """Error on unseen images, and accuracy, against Z's budget: a column for each model and base."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from experiments.plots import add_key

    groups = [
        (name, base, [row for row in rows if row["base"] == base])
        for name, rows in _measured(content).items()
        for base in BASES
    ]
    groups = [group for group in groups if group[2]]
    figure = Figure(figsize=(max(3.9 * len(groups), 6.0), 7.0), layout="constrained")
    if not groups:
        figure.suptitle(f"{content['title']}: nothing measured yet", fontsize=11)
        return figure
    panels = figure.subplots(2, len(groups), squeeze=False, sharex=True)
    for (name, base, rows), column in zip(groups, panels.T, strict=True):
        column[0].set_title(f"{name}: {rows[0]['model']}\n{BASES[base]}", fontsize=9)
        for panel, field in zip(column, (ERROR, TOP1), strict=True):
            _draw_panel(panel, rows, _without(rows, base), field)
        column[1].set_xlabel("Z's budget, % of a layer's weights")
    panels[0, 0].set_ylabel("relative error on unseen images")
    panels[1, 0].set_ylabel("top-1, %")
    handles = [Line2D([], [], color="0.4", linewidth=2.5, alpha=0.5, label="no Z: all of it rank")]
    handles += [Line2D([], [], marker=marker, color=c, label=LABELS[kind]) for kind, (marker, c) in STYLES.items()]
    handles += [
        Line2D([], [], color="0.3", linestyle=style, label=f"solver: {name}") for name, style in SOLVERS.items()
    ]
    add_key(figure, handles, columns=4)
    title = f"{content['title']}; every point has the same number of parameters"
    figure.suptitle(textwrap.fill(title, 38 * len(groups)), fontsize=11)
    return figure


def _draw_panel(panel: Axes, rows: Sequence[Row], none: Row | None, field: str) -> None:
    if none is not None:
        panel.axhline(none[field], color="0.4", linewidth=2.5, alpha=0.5, zorder=0)
    for kind, (marker, colour) in STYLES.items():
        for solver, line in SOLVERS.items():
            own = sorted(
                (row for row in rows if (row["z"], row["solver"]) == (kind, solver)), key=lambda r: r["budget"]
            )
            panel.plot(
                [100 * row["budget"] for row in own],
                [row[field] for row in own],
                marker=marker,
                markersize=4,
                color=colour,
                linestyle=line,
                linewidth=1.2,
            )
    panel.set_xscale("log")
    panel.set_xticks([1, 2.5, 5, 10], labels=["1", "2.5", "5", "10"])
    panel.minorticks_off()
    if field == ERROR:
        panel.set_yscale("log")
        for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            ticks("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)
