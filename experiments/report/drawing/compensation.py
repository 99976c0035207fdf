"""Draw figure 3."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.drawing import panels
from experiments.report.drawing.panels import Results
from experiments.report.plots import add_key, key
from experiments.report.styles import STYLES, mpl

SMALL, LARGE = {"markersize": 4}, {"markersize": 8}  # Z's solvers end so close that one has to stand around the other
HOLLOW = {"markerfacecolor": "white"}
METHODS = {  # label, look
    "svd": ("plain SVD", panels.SVD | SMALL),
    "before": ("mean-input SVD before Z, of lower rank", panels.MEAN | SMALL | HOLLOW | {"linestyle": ":"}),
    "rank": ("mean-input SVD, Z's budget spent on rank", panels.MEAN | SMALL),
    "gradient": ("mean-input SVD + Z by gradients", mpl(STYLES["z, by gradients"]) | LARGE | HOLLOW),
    "closed_form": ("mean-input SVD + Z in closed form", mpl(STYLES["z, closed form"]) | SMALL),
    "exact": ("whitened SVD (exact)", panels.WHITENED | SMALL),
}
OPTIMIZERS = {"adam": "Adam", "sgd": "plain gradient descent"}
BATCHES = {"minibatch": "minibatches", "moments": "all images at once"}  # by the solver
COLUMNS = 2


def draw(results: Results, title: str) -> Figure:
    """Draw a panel for each model: the error of every method in every block, on unseen images."""
    budgets = sorted({result["measured"]["z"]["budget"] for seeds in results.values() for result in seeds})
    z = f"Z: {', '.join(f'{100 * budget:g} %' for budget in budgets)} of the parameters, at least rank 1"
    notes = f"mean over unseen images of ‖XW - XW'‖² / ‖XW‖²; {z}; {panels.counted(results)}"
    columns = min(COLUMNS, len(results))
    lines = math.ceil(len(results) / columns)
    figure = panels.new_figure(title, notes, results, 1.4 + 2.3 * lines)
    for index, seeds in enumerate(results.values()):
        panel = figure.add_subplot(lines, columns, index + 1)
        _draw_model(panel, seeds)
        panels.finish(panel, _title(seeds), "block", "relative squared error")
    add_key(figure, [key(label, **look) for label, look in METHODS.values()], columns=2)
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
    return f"{panels.architecture(results)}{solver}{note}"


def _draw_model(panel: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    blocks = range(len(results[0]["measured"]["blocks"]))
    for method, (_, look) in METHODS.items():
        if method in results[0]["measured"]["methods"]:
            panel.plot(blocks, panels.mean(results, "methods", method, "unseen"), linewidth=1, **look)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
