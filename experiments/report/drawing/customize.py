"""Draw figure D: samples of each customised model, beside the examples that it was shown."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing.panels import SIZE, WIDTH, Results, mean, new_figure
from experiments.tables.table_customize import METHODS

SIDE = 8  # pixels
COLUMNS = (  # images, their prompt, and what was measured of them
    ("samples", "normal V* digit", "custom_concept"),
    ("inverted", "inverted V* digit", "custom_composition"),
)


def draw(results: Results, title: str) -> Figure:
    """Draw a row of samples for each method, of its first seed, below the examples; both styles side by side."""
    lines = len(results) + 1
    notes = "examples are those of the first seed; samples by DDIM, 25 steps, guidance 2"
    figure = new_figure(title, notes, results, 0.8 + lines * WIDTH / 2 / SIDE * 1.25)
    panels = figure.subplots(lines, len(COLUMNS), squeeze=False)
    first = next(iter(results.values()))[0]["measured"]
    _show(panels[0, 0], first["examples"], "the eight examples")
    panels[0, 1].set_axis_off()
    for line, (row, seeds) in zip(panels[1:], results.items(), strict=True):
        method, _ = METHODS[row.rpartition("/")[2]]
        for panel, (name, prompt, number) in zip(line, COLUMNS, strict=True):
            _show(panel, seeds[0]["measured"][name], f"{method}: {prompt} ({mean(seeds, number):.0f} %)")
    return figure


def _show(panel: Axes, images: Sequence[str], title: str) -> None:
    """Put images, in hexadecimal bytes, side by side, a column of grey between them."""
    grey = np.full((SIDE, 1), 128, dtype=np.uint8)
    pictures = [np.frombuffer(bytes.fromhex(image), dtype=np.uint8).reshape(SIDE, SIDE) for image in images]
    strip = np.concatenate([part for picture in pictures for part in (picture, grey)][:-1], axis=1)
    panel.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    panel.set_axis_off()
    panel.set_title(title, fontsize=SIZE - 1, loc="left", pad=2)
