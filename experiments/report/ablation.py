"""Draw Table 1, and say in words when Z helps and when its budget is better spent on rank."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from experiments.report import styles
from experiments.report.uncertainty import images_of

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
SGD = "minibatch, sgd"
SOLVERS: dict[str, Any] = {"closed_form": "-", "moments": "--", "minibatch": ":", SGD: "-."}
STYLES = {kind: styles.STYLES[f"{label}, representative"] for kind, label in LABELS.items()}
ERROR, TOP1 = "relative_error_held_out", "top1"


def _measured(content: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Group the rows that were run by architecture."""
    rows = [row for row in content["rows"] if row["status"] == "done"]
    return {name: list(group) for name, group in groupby(rows, key=lambda row: row["architecture"])}


def _solver(row: Row) -> str:
    """Name the solver, with plain gradient descent where it stands in for Adam."""
    return f"{row['solver']}, sgd" if row.get("optimizer") == "sgd" else str(row["solver"])


def _without(rows: Sequence[Row], base: str) -> Row | None:
    return next((row for row in rows if row["base"] == base and row["z"] is None), None)


def _comparable(rows: Sequence[Row], base: str) -> list[Row]:
    """Return a base's rows with the seeds of its row without Z: two draws of images differ by more than a small Z."""
    none = _without(rows, base)
    return [row for row in rows if row["base"] == base and (none is None or row["seeds"] == none["seeds"])]


def findings(content: Mapping[str, Any]) -> list[str]:
    """Describe each base and kind of Z in a sentence: error on unseen images and accuracy, against rank instead of Z."""
    said = []
    for name, rows in _measured(content).items():
        for base, label in BASES.items():
            none, fair = _without(rows, base), _comparable(rows, base)
            for kind in LABELS:
                budgets = [row for row in fair if (row["z"], row["solver"]) == (kind, "closed_form")]
                if budgets and none is not None:
                    said.append(f"{name}, {label.removeprefix('base: ')}: {_compare(none, budgets, LABELS[kind])}")
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


def draw(content: Mapping[str, Any]) -> "Figure":
    """Draw error on unseen images, and accuracy, against Z's budget: a column for each model and base."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from experiments.report.plots import add_key

    groups = [(name, base, _comparable(rows, base)) for name, rows in _measured(content).items() for base in BASES]
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
    handles += [Line2D([], [], marker=s.marker, color=s.colour, label=LABELS[kind]) for kind, s in STYLES.items()]
    handles += [
        Line2D([], [], color="0.3", linestyle=style, label=f"solver: {name}", **_hollow(name))
        for name, style in SOLVERS.items()
    ]
    add_key(figure, handles, columns=4, title=textwrap.fill(images_of(content["rows"]), 45 * len(groups)))
    title = f"{content['title']}; every point has the same number of parameters"
    figure.suptitle(textwrap.fill(title, 38 * len(groups)), fontsize=11)
    return figure


def _hollow(solver: str) -> dict[str, Any]:
    """Return the style of plain gradient descent's markers, which stand alone where one budget was run."""
    return {"marker": "o", "markersize": 4, "markerfacecolor": "white"} if solver == SGD else {}


def _draw_panel(panel: "Axes", rows: Sequence[Row], none: Row | None, field: str) -> None:
    from experiments.report.plots import add_grid

    if none is not None:
        panel.axhline(none[field], color="0.4", linewidth=2.5, alpha=0.5, zorder=0)
    for kind, (marker, _, colour) in ((kind, style.mpl) for kind, style in STYLES.items()):
        for solver, line in SOLVERS.items():
            found = (row for row in rows if row["z"] == kind and _solver(row) == solver)
            curve = sorted(found, key=lambda row: row["budget"])
            style = {"markersize": 4, "linestyle": line, "linewidth": 1.2, **_hollow(solver), "marker": marker}
            points = [100 * row["budget"] for row in curve], [row[field] for row in curve]
            panel.plot(*points, color=colour, **style)
    panel.set_xscale("log")
    panel.set_xticks([1, 2.5, 5, 10], labels=["1", "2.5", "5", "10"])
    panel.minorticks_off()
    if field == ERROR:
        panel.set_yscale("log")
        for ticks in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            ticks("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
    add_grid(panel)
