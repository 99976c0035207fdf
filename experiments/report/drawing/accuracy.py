"""Draw figure 2."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing.panels import SIZE, Results, architecture, finish, mean, new_figure
from experiments.report.plots import add_key, key

METHODS = {"svd": "plain SVD", "representative": "mean-image SVD", "whitened": "whitened SVD"}
PARTS = {"blocks": "(a) one block", "layers": "(b) layer type"}
WIDTHS = {"blocks": 5, "layers": 4}
TICKS = 8  # numbers of blocks that fit below a panel
SHARES = (("o", "-", "0.7"), ("s", "--", "0.5"), ("^", "-.", "0.3"), ("D", ":", "0.0"))  # darker: more is removed


def draw(results: Results, title: str) -> Figure:
    """Draw a row of panels for each model: (a) blocks, (b) types of layers, each by every decomposition."""
    models = list(dict.fromkeys(name.partition("/")[0] for name in results))
    counts = sorted({result["measured"]["n"] for seeds in results.values() for result in seeds})
    notes = f"top-1 on {' or '.join(f'{count:,}' for count in counts)} images, everything else dense"
    figure = new_figure(title, notes, results, 1.0 + 1.7 * len(models) + 0.4)
    places = [(part, method) for part in PARTS for method in METHODS]
    widths = [WIDTHS[part] for part, _ in places]
    panels = figure.subplots(len(models), len(places), squeeze=False, sharey="row", width_ratios=widths)
    for line, model in zip(panels, models, strict=True):
        for panel, (part, method) in zip(line, places, strict=True):
            panel.set_visible(f"{model}/{part}" in results)
            if panel.get_visible():
                _draw_part(panel, results[f"{model}/{part}"], method)
                finish(panel, f"{PARTS[part]},\n{METHODS[method]}", "block" if part == "blocks" else "layer type")
        first = next(panel for panel in line if panel.get_visible())
        own = next(seeds for name, seeds in results.items() if name.startswith(f"{model}/"))
        first.set_ylabel(f"{architecture(own)}\ntop-1, %", fontsize=SIZE)
        first.tick_params(labelleft=True)
    for panel in panels[1:].flat:
        panel.set_title("")
    for panel in panels[:-1].flat:
        panel.set_xlabel("")
    removed = next(iter(results.values()))[0]["measured"]["removed"]
    entries = [key("nothing (dense)", color="0.75", linewidth=0.8)]
    entries += [key(f"{percent} %", **_style(index)) for index, percent in enumerate(removed)]
    add_key(figure, entries, columns=5, title="removed of the full rank of these layers:")
    return figure


def _style(index: int) -> dict[str, Any]:
    marker, line, colour = SHARES[index]
    return {"marker": marker, "linestyle": line, "color": colour, "markersize": 3.5, "linewidth": 1}


def _draw_part(panel: Axes, results: Sequence[Mapping[str, Any]], method: str) -> None:
    """Draw top-1 by the block or the type of layer that is reduced, a line for each share."""
    measured = results[0]["measured"]
    groups = list(measured["top1"][method])
    panel.axhline(float(mean(results, "dense")), color="0.75", linewidth=0.8, zorder=0)
    tops = [mean(results, "top1", method, group) for group in groups]
    for index, _ in enumerate(measured["removed"]):
        panel.plot(range(len(groups)), [top[index] for top in tops], **_style(index))
    # a block's number, counted through all stages, or a layer's last name
    names = [str(at) if "blocks" in group else group.rpartition(".")[2] for at, group in enumerate(groups)]
    every = math.ceil(len(groups) / TICKS)
    panel.set_xticks(range(0, len(groups), every), names[::every])
