"""Draw figure 3."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.report.drawing.panels import (
    CLOSED_FORM,
    GRADIENT,
    REPRESENTATIVE,
    SIZE,
    SVD,
    WHITENED,
    Results,
    architecture,
    counted,
    finish,
    key,
    mean,
    new_figure,
)
from experiments.report.plots import add_key

SMALL, LARGE = 4, 8  # points; Z's two solvers end so close to each other that one has to stand around the other
METHODS = {  # label, style, whether the markers are hollow, their size
    "svd": ("plain SVD", SVD, False, SMALL),
    "before": ("mean-input SVD before Z, of lower rank", (REPRESENTATIVE[0], ":", REPRESENTATIVE[2]), True, SMALL),
    "rank": ("mean-input SVD, Z's budget spent on rank", REPRESENTATIVE, False, SMALL),
    "gradient": ("mean-input SVD + Z by gradients", GRADIENT, True, LARGE),
    "closed_form": ("mean-input SVD + Z in closed form", CLOSED_FORM, False, SMALL),
    "exact": ("whitened SVD (exact)", WHITENED, False, SMALL),
}
OPTIMIZERS = {"adam": "Adam", "sgd": "plain gradient descent"}
BATCHES = {"minibatch": "minibatches", "moments": "all images at once"}  # by the solver
COLUMNS = 2


def draw(results: Results, title: str) -> Figure:
    """Draw a panel for each model: the error of every method in every block, on unseen images."""
    budgets = sorted({result["measured"]["z"]["budget"] for seeds in results.values() for result in seeds})
    z = f"Z: {', '.join(f'{100 * budget:g} %' for budget in budgets)} of the parameters, at least rank 1"
    images = counted(result for seeds in results.values() for result in seeds)
    notes = f"mean over unseen images of ‖XW - XW'‖² / ‖XW‖²; {z}; {images}"
    columns = min(COLUMNS, len(results))
    lines = math.ceil(len(results) / columns)
    figure = new_figure(title, notes, results, 1.4 + 2.3 * lines)
    for index, seeds in enumerate(results.values()):
        panel = figure.add_subplot(lines, columns, index + 1)
        _draw_model(panel, seeds)
        panel.set_title(_title(seeds), fontsize=SIZE)
        finish(panel)
    add_key(figure, _entries(), columns=2)
    return figure


def _title(results: Sequence[Mapping[str, Any]]) -> str:
    """Name the model, and the blocks whose mean input has fewer tokens than the rank that the budget would buy."""
    measured = results[0]["measured"]
    pairs = zip(measured["methods"]["rank"]["params"], measured["methods"]["svd"]["params"], strict=True)
    capped = [str(block) for block, (parameters, whole) in enumerate(pairs) if parameters < whole]
    note = f"\nmean-input rank capped by the tokens, blocks {', '.join(capped)}" if capped else ""
    z = measured["z"]
    optimizer = OPTIMIZERS[z.get("optimizer", "adam")]  # earlier results do not name it
    solver = f" ({optimizer}: {BATCHES[z['solver']]})" if z["solver"] in BATCHES else ""
    return f"{architecture(results)}{solver}{note}"


def _draw_model(panel: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    blocks = range(len(results[0]["measured"]["blocks"]))
    for method in [name for name in METHODS if name in results[0]["measured"]["methods"]]:
        panel.plot(blocks, mean(results, "methods", method, "unseen"), linewidth=1, **_style(method))
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("block", fontsize=SIZE)
    panel.set_ylabel("relative squared error", fontsize=SIZE)


def _style(method: str) -> dict[str, Any]:
    _, (marker, line, colour), hollow, size = METHODS[method]
    face = "white" if hollow else colour
    return {"marker": marker, "linestyle": line, "color": colour, "markerfacecolor": face, "markersize": size}


def _entries() -> list[Line2D]:
    return [key(label, **_style(method)) for method, (label, *_) in METHODS.items()]
