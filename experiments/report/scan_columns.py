"""Define the columns of Table V: what replacing the scans of a model costs, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from experiments.report.formats import number, of_share, percent

SCANNED = "Scans: how many were replaced, least impact on the calibration images first."
TOP1 = (
    "Top-1: percent, on the evaluation's images; drop: points below the dense model; KL: from it, in nats, on the same."
)
SPEED = "x 1, x 8: speed-up over the dense model at these batch sizes, medians of processor time, in turns."
ENERGY = "Shared: of the energy of the replaced scans' outputs, what is the same for all channels, in percent."
ZEROS = "Zeros: share of the linear weights in blocks; they are stored and multiplied like others."


SCAN_COLUMNS: tuple[tuple[str, str, Callable[[float | None], str], str, str], ...] = (
    ("scans_replaced", "Scans", partial(number, digits=0), "", SCANNED),
    ("scans_top1", "Top-1", percent, "", TOP1),
    ("scans_drop", "Drop", percent, "", TOP1),
    ("scans_kl", "KL", partial(number, digits=4), "", TOP1),
    ("scans_speed_1", "x 1", number, "", SPEED),
    ("scans_speed_8", "x 8", number, "", SPEED),
    ("scans_energy", "Shared %", of_share, "", ENERGY),
    ("scans_zeros", "Zeros %", of_share, "", ZEROS),
)
