"""The figures of the paper from what their jobs measured, one file each; 8 points at a printed width of 7.2 inches."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plots import SIZE, STYLES

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # by row: one for each seed
WIDTH = 7.2  # inches, of a page's text
LINE = 100  # characters of a title
# marker, line and colour, those of the same methods in the tables' plots
SVD, REPRESENTATIVE, WHITENED, CLOSED_FORM, GRADIENT = (STYLES[index] for index in (0, 1, 2, 4, 5))


def new_figure(title: str, notes: str, results: Results, height: float) -> Figure:
    """An empty figure with its title, and below it the images, what the reader has to know, and the seeds."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    seeds = sorted({result["job"]["seed"] for own in results.values() for result in own})
    named = f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    name, _, images = title.partition(" · ")
    lines = [*textwrap.wrap(name, LINE), *textwrap.wrap(f"{images}; {notes}; {named}", LINE)]
    figure.suptitle("\n".join(lines), fontsize=SIZE + 1)
    return figure


def mean(results: Sequence[Mapping[str, Any]], *path: str) -> np.ndarray:
    """The mean over the seeds of the numbers at ``path`` of what was measured."""
    found = []
    for result in results:
        value = result["measured"]
        for name in path:
            value = value[name]
        found.append(value)
    return np.mean(found, axis=0)


def finish(panel: Axes) -> None:
    """What all panels have in common."""
    panel.tick_params(labelsize=SIZE)
    panel.grid(visible=True, color="0.92")
    panel.set_axisbelow(True)


def counted(results: Iterable[Mapping[str, Any]]) -> str:
    """How many images of both kinds were measured."""
    counts = {(own["calibration"], own["unseen"]) for own in (result["measured"]["images"] for result in results)}
    return " or ".join(f"{seen:,} calibration images, {unseen:,} unseen ones" for seen, unseen in sorted(counts))


def architecture(results: Sequence[Mapping[str, Any]]) -> str:
    """The model's name without the tag of its weights."""
    return str(results[0]["job"]["model"]).partition(".")[0]


def key(label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **style)
