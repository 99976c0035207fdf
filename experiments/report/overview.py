"""Draw what the pages show first, from what is published: all methods on one model, and what its blocks can spare.

``python -m experiments publish`` writes both into ``docs/figures``, for light and for dark pages, without a background.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.jobs.job import read_json
from experiments.report.styles import COLOURS, STYLES, known_style, mpl
from experiments.report.uncertainty import Row
from lowrank_vit.records.sites import HIDDEN, QUERY_KEY, VALUE
from lowrank_vit.runtime.files import write_text

Draw = Callable[[Axes, Path, int], None]
TABLES = ("table_best", "table_rivals", "table3", "table2")  # of two that have a row, the first one's is drawn
MODEL = "deit_t/"
NAMES = {  # in the order of the legend; a method that is not published has no line
    "+ factors pivoted": "best, pivoted",
    "best": "best",
    "heads": "best, blocks alone",
    "loss_aware": "loss_aware",
    "exact": "exact",
    "svd_llm": "SVD-LLM's form",
    "aafm": "AAFM, our reading",
    "flar": "FLAR-SVD, no latency model",
    "corp_layerwise": "CORP, layer by layer",
    "corp": "CORP, our reading",
    "vbp": "VBP's pruning",
    "vtp_taylor": "VTP, first order",
    "ssp": "S2ViTE's baseline",
    "comcat0": "COMCAT's start",
    "fwsvd_search": "FWSVD, searched",
    "asvd_search": "ASVD, searched",
    "asvd": "ASVD, uniform",
    "paper": "the paper, our settlements",
    "svd": "plain SVD",
}
THEMES = {"light": (0, "#333333", "#d5d5d5"), "dark": (1, "#e0e0e0", "#555555")}  # which colour, ink, lines
PARTS = {  # what a block can spare: its name, colour and mark
    QUERY_KEY: ("queries with keys", "blue", "o"),
    VALUE: ("values with the output", "orange", "s"),
    HIDDEN: ("hidden units", "green", "^"),
}
HALF = 50  # per cent of a part that is removed
FIXED = {"svg.fonttype": "none", "svg.hashsalt": "lowrank_vit", "font.family": "sans-serif", "font.size": 11}


def write_figures(published: Path, folder: Path) -> None:
    """Write ``pareto-THEME.svg`` and ``blocks-THEME.svg`` from the JSON in ``published``."""
    for name, draw in {"pareto": _draw_pareto, "blocks": _draw_blocks}.items():
        for theme in THEMES:
            write_text(folder / f"{name}-{theme}.svg", _svg(draw, published, theme))


def methods(published: Path) -> dict[str, list[Row]]:
    """Collect the rows of each method that was measured on the model without any training, from the largest size on."""
    names, found = {id(STYLES[name]): name for name in NAMES}, dict[str, dict[float, Row]]()
    rows = [row for table in TABLES for row in (read_json(published / f"{table}.json") or {"rows": []})["rows"]]
    for row in (row for row in rows if row["id"].startswith(MODEL) and row["status"] == "done" and row["reduction"]):
        name = names.get(id(known_style(row["method"])))
        if name is not None and row["protocol"].startswith("training-free"):
            found.setdefault(name, {}).setdefault(row["reduction"], row)
    return {name: [row for _, row in sorted(found[name].items())] for name in NAMES if name in found}


def _svg(draw: Draw, published: Path, theme: str) -> str:
    """Draw one figure in one theme; the same input gives the same text."""
    index, ink, lines = THEMES[theme]
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    settings: Any = FIXED | inks | dict.fromkeys(("axes.edgecolor", "grid.color"), lines)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        panel = figure.subplots()
        draw(panel, published, index)
        panel.grid(visible=True, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right center", frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw_pareto(panel: Axes, published: Path, index: int) -> None:
    """Draw top-1 against parameters, a line for each method, and the dense model."""
    series = methods(published)
    dense = next(iter(series.values()))[0]
    ink = COLOURS["black"][index]
    panel.plot(dense["params_dense"] / 1e6, dense["top1_dense"], "*", markersize=14, color=ink, label="dense")
    for name, rows in series.items():
        look = mpl(STYLES[name]) | {"color": COLOURS[STYLES[name].colour][index], "markersize": 6, "linewidth": 1.6}
        sizes, tops = [row["params"] / 1e6 for row in rows], [row["top1"] for row in rows]
        panel.plot(sizes, tops, label=NAMES[name], **look)
    panel.set_xlabel(f"parameters of {dense['architecture']}, millions")
    panel.set_ylabel(f"top-1 on {dense['images']:,} sample images, %, untrained")


def _draw_blocks(panel: Axes, published: Path, index: int) -> None:
    """Draw how much the loss rises where half of one part of a block is removed, all else dense."""
    content = json.loads((published / "figure_loss.json").read_text(encoding="utf-8"))
    draws = next(results for row, results in content["measured"].items() if row.startswith(MODEL))  # one for each seed
    half = draws[0]["removed"].index(HALF)
    for part, (label, colour, marker) in PARTS.items():
        names = [name for name in draws[0]["parts"] if name.rpartition(".")[2] == part]
        rises = [fmean(draw["parts"][name]["measured"][half] for draw in draws) for name in names]
        panel.plot(rises, marker=marker, color=COLOURS[colour][index], label=label, linewidth=1.6, markersize=6)
    panel.set_yscale("log")
    panel.set_xlabel("block of DeiT-Tiny, from the image to the class")
    panel.set_ylabel(f"rise of the loss, nats: {HALF} % of one part removed")
