"""Define the columns of Table V: what replacing the scans of a model costs, and what it saves."""

from __future__ import annotations

from collections.abc import Callable

from experiments.report.formats import of_share, percent, times

SCANNED = "Scans: how many were replaced, least impact on the calibration images first."
TOP1 = (
    "Top-1: percent, on the evaluation's images; drop: points below the dense model; KL: from it, in nats, on the same."
)
SPEED = "x 1, x 8: speed-up over the dense model at these batch sizes, medians of processor time, in turns."
ENERGY = "Shared: of the energy of the replaced scans' outputs, what is the same for all channels, in percent."
ZEROS = "Zeros: share of the linear weights in blocks; they are stored and multiplied like others."


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


SCAN_COLUMNS: tuple[tuple[str, str, Callable[[float | None], str], str, str], ...] = (
    ("scans_replaced", "Scans", _count, "", SCANNED),
    ("scans_top1", "Top-1", percent, "", TOP1),
    ("scans_drop", "Drop", percent, "", TOP1),
    ("scans_kl", "KL", _nats, "", TOP1),
    ("scans_speed_1", "x 1", times, "", SPEED),
    ("scans_speed_8", "x 8", times, "", SPEED),
    ("scans_energy", "Shared %", of_share, "", ENERGY),
    ("scans_zeros", "Zeros %", of_share, "", ZEROS),
)
