"""Define the columns of tables that measure something of their own: scans, files of a given size, customised models."""

from collections.abc import Callable
from functools import partial

from experiments.report.formats import file_size, human, number, of_share, percent

Columns = tuple[
    tuple[str, str, Callable[..., str], str, str], ...
]  # name, header, what writes it, short header, meaning

SCANNED = "Scans: how many were replaced, least impact on the calibration images first."
SCAN_TOP1 = (
    "Top-1: percent, on the evaluation's images; drop: points below the dense model; KL: from it, in nats, on the same."
)
SPEED = "x 1, x 8: speed-up over the dense model at these batch sizes, medians of processor time, in turns."
ENERGY = "Shared: of the energy of the replaced scans' outputs, what is the same for all channels, in percent."
ZEROS = "Zeros: share of the linear weights in blocks; they are stored and multiplied like others."
SCAN_COLUMNS: Columns = (
    ("scans_replaced", "Scans", partial(number, digits=0), "", SCANNED),
    ("scans_top1", "Top-1", percent, "", SCAN_TOP1),
    ("scans_drop", "Drop", percent, "", SCAN_TOP1),
    ("scans_kl", "KL", partial(number, digits=4), "", SCAN_TOP1),
    ("scans_speed_1", "x 1", number, "", SPEED),
    ("scans_speed_8", "x 8", number, "", SPEED),
    ("scans_energy", "Shared %", of_share, "", ENERGY),
    ("scans_zeros", "Zeros %", of_share, "", ZEROS),
)

BYTES = "File size: of the model on disk."
STORED_TOP1 = "Top-1: percent, measured here, on the evaluation's images."

SIZE_SPREADS = ("stored_top1",)  # of those whose spread over the seeds is shown
SIZE_COLUMNS: Columns = (
    ("stored_bytes", "File size", file_size, "", BYTES),
    ("stored_top1", "Top-1", percent, "", STORED_TOP1),
)

DELTA = "Trained: numbers in the delta; File: of the delta on disk."
LEARNT = (
    "New: percent of 180 images of the new digit that the judge recognises; Inverted: the same in the style that no example "
    "has. Fréchet: distance of the judge's features from those of the evaluation's real images; Nearest: mean distance to "
    "the nearest of the eight examples, in pixels (small: learnt by heart)."
)
OLD = "Old: percent of 160 images of the eight old digits; Change: points, after customising; Fréchet old: their distance."
STEP = "ms: median of a training step of four images, on a machine that other work shared."


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


CUSTOMIZE_COLUMNS: Columns = (
    ("custom_count", "Trained", human, "", DELTA),
    ("custom_bytes", "File", file_size, "", DELTA),
    ("custom_concept", "New %", percent, "", LEARNT),
    ("custom_composition", "Inverted %", percent, "", LEARNT),
    ("custom_distance", "Fréchet", percent, "", LEARNT),
    ("custom_nearest", "Nearest", number, "", LEARNT),
    ("custom_old", "Old %", percent, "", OLD),
    ("custom_old_change", "Change", _change, "", OLD),
    ("custom_old_distance", "Fréchet old", number, "", OLD),
    ("custom_step", "ms", number, "", STEP),
)
CUSTOMIZE_SPREADS = ("custom_concept", "custom_composition", "custom_old", "custom_distance")

MEASURED_COLUMNS = (*SCAN_COLUMNS, *SIZE_COLUMNS, *CUSTOMIZE_COLUMNS)
MEASURED_FIELDS = tuple(name for name, *_ in MEASURED_COLUMNS)
MEASURED_SPREADS = (*CUSTOMIZE_SPREADS, *SIZE_SPREADS)  # of those whose spread over the seeds is shown
