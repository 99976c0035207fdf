"""Define the columns of Table 4b: what a file of a given size can do."""

from __future__ import annotations

from collections.abc import Callable

from experiments.report.formats import file_size, percent

BYTES = "File size: of the model on disk."
TOP1 = "Top-1: percent, measured here, on the evaluation's images."

SIZE_SPREADS = ("stored_top1",)  # of those whose spread over the seeds is shown
SIZE_COLUMNS: tuple[tuple[str, str, Callable[..., str], str, str], ...] = (
    ("stored_bytes", "File size", file_size, "", BYTES),
    ("stored_top1", "Top-1", percent, "", TOP1),
)
