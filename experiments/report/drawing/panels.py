"""Share what all figures have in common: 8 points at a printed width of 7.2 inches, titles, means, legends."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import SIZE, add_grid
from experiments.report.styles import STYLES, mpl

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # by row: one for each seed
WIDTH = 7.2  # inches, of a page's text
LINE = 100  # characters of a title
# marker, line and colour, those of the same methods in the tables' plots
SVD, MEAN, WHITENED = (mpl(STYLES[name]) for name in ("svd", "paper", "exact"))


def new_figure(title: str, notes: str, results: Results, height: float) -> Figure:
    """Make an empty figure with its title, and below it the images, what the reader has to know, and the seeds."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    seeds = sorted({result["job"]["seed"] for of_row in results.values() for result in of_row})
    named = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    name, _, images = title.partition(" · ")
    lines = [*textwrap.wrap(name, LINE), *textwrap.wrap(f"{images}; {notes}; {named}", LINE)]
    figure.suptitle("\n".join(lines), fontsize=SIZE + 1)
    return figure


def mean(results: Sequence[Mapping[str, Any]], *path: str) -> np.ndarray:
    """Average over the seeds the numbers at ``path`` of what was measured."""
    return np.mean([reduce(getitem, path, result["measured"]) for result in results], axis=0)


def finish(panel: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set what all panels have in common: a title, labels of the axes, and a grid."""
    panel.set_title(title, fontsize=SIZE)
    panel.set_xlabel(x, fontsize=SIZE)
    panel.set_ylabel(y, fontsize=SIZE)
    panel.tick_params(labelsize=SIZE)
    add_grid(panel)


def counted(results: Results) -> str:
    """Say how many images of both kinds were measured."""
    measured = (result["measured"]["images"] for seeds in results.values() for result in seeds)
    counts = {(images["calibration"], images["unseen"]) for images in measured}
    return " or ".join(f"{seen:,} calibration images, {unseen:,} unseen ones" for seen, unseen in sorted(counts))


def architecture(results: Sequence[Mapping[str, Any]]) -> str:
    """Name the model without the tag of its weights."""
    return str(results[0]["job"]["model"]).partition(".")[0]
