"""Define the columns of Table D: what a customised diffusion model learnt and forgot, and what its delta costs."""

from __future__ import annotations

from collections.abc import Callable

from experiments.report.formats import file_size, human, number, percent

SIZE = "Trained: numbers in the delta; File: of the delta on disk."
LEARNT = (
    "New: percent of 180 images of the new digit that the judge recognises; Inverted: the same in the style that no example "
    "has. Fréchet: distance of the judge's features from those of the evaluation's real images; Nearest: mean distance to "
    "the nearest of the eight examples, in pixels (small: learnt by heart)."
)
OLD = "Old: percent of 160 images of the eight old digits; Change: points, after customising; Fréchet old: their distance."
STEP = "ms: median of a training step of four images, on a machine that other work shared."


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


CUSTOMIZE_COLUMNS: tuple[tuple[str, str, Callable[..., str], str, str], ...] = (
    ("custom_count", "Trained", human, "", SIZE),
    ("custom_bytes", "File", file_size, "", SIZE),
    ("custom_concept", "New %", percent, "", LEARNT),
    ("custom_composition", "Inverted %", percent, "", LEARNT),
    ("custom_distance", "Fréchet", percent, "", LEARNT),
    ("custom_nearest", "Nearest", number, "", LEARNT),
    ("custom_old", "Old %", percent, "", OLD),
    ("custom_old_change", "Change", _change, "", OLD),
    ("custom_old_distance", "Fréchet old", number, "", OLD),
    ("custom_step", "ms", number, "", STEP),
)
CUSTOMIZE_FIELDS = tuple(name for name, *_ in CUSTOMIZE_COLUMNS)
CUSTOMIZE_SPREADS = ("custom_concept", "custom_composition", "custom_old", "custom_distance")
