"""Figure 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.drawing import SIZE, Results, finish, mean, new_figure

METHODS = {"svd": "plain SVD", "whitened": "whitened SVD"}
PARTS = {"blocks": "(a) one block", "layers": "(b) one layer type"}
SHARES = (("o", "-", "0.7"), ("s", "--", "0.5"), ("^", "-.", "0.3"), ("D", ":", "0.0"))  # darker: more is removed


def draw(results: Results, title: str) -> Figure:
    """A row of panels for each model: (a) blocks, (b) types of layers, each by plain and by whitened SVD."""
    models = list(dict.fromkeys(name.partition("/")[0] for name in results))
    counts = sorted({result["measured"]["n"] for own in results.values() for result in own})
    notes = f"top-1 on {' or '.join(f'{count:,}' for count in counts)} images, everything else dense"
    figure = new_figure(title, notes, results, 1.0 + 1.7 * len(models) + 0.4)
    panels = figure.subplots(len(models), 4, squeeze=False, sharey="row", width_ratios=(3, 3, 2, 2))
    for line, model in zip(panels, models, strict=True):
        places = [(part, method) for part in PARTS for method in METHODS]
        for panel, (part, method) in zip(line, places, strict=True):
            own = results.get(f"{model}/{part}")
            if own is None:
                panel.set_axis_off()
                continue
            _draw_part(panel, own, method)
            finish(panel, f"{PARTS[part]}, {METHODS[method]}")
            panel.set_xlabel("block" if part == "blocks" else "layer type", fontsize=SIZE)
            if panel is line[0]:
                panel.set_ylabel(f"{own[0]['job']['model'].partition('.')[0]}\ntop-1, %", fontsize=SIZE)
    removed = next(iter(results.values()))[0]["measured"]["removed"]
    figure.legend(handles=_legend(removed), loc="outside lower center", ncols=5, frameon=False, fontsize=SIZE)
    return figure


def _draw_part(panel: Axes, results: Sequence[Mapping[str, Any]], method: str) -> None:
    """Top-1 by the block or the type of layer that is reduced, a line for each share."""
    measured = results[0]["measured"]
    groups = list(measured["top1"][method])
    panel.axhline(float(mean(results, "dense")), color="0.75", linewidth=0.8, zorder=0)
    tops = [mean(results, "top1", method, group) for group in groups]
    for index, _ in enumerate(measured["removed"]):
        marker, line, colour = SHARES[index]
        heights = [top[index] for top in tops]
        panel.plot(
            range(len(groups)), heights, marker=marker, linestyle=line, color=colour, markersize=3.5, linewidth=1
        )
    panel.set_xticks(range(len(groups)), [_short(group, number) for number, group in enumerate(groups)])


def _short(group: str, number: int) -> str:
    """A block's number, counted through all stages; a layer's last name."""
    return str(number) if "blocks" in group else group.rpartition(".")[2]


def _legend(removed: Sequence[int]) -> list[Line2D]:
    handles = [Line2D([], [], color="0.75", linewidth=0.8, label="dense")]
    for percent, (marker, line, colour) in zip(removed, SHARES, strict=True):
        style: dict[str, Any] = {
            "marker": marker,
            "linestyle": line,
            "color": colour,
            "markersize": 3.5,
            "linewidth": 1,
        }
        handles.append(Line2D([], [], label=f"{percent} % of rank removed", **style))
    return handles
