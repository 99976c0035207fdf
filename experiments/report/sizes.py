"""Say of Table 4, from its own numbers, what a file holds beside the weights' bits that a paper counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

Row = Mapping[str, Any]
MIB = 2**20
FLOAT16 = 16  # bits of all that is not rounded


def counted_bytes(row: Row) -> float | None:
    """Return the bytes of all parameters at the row's number of bits, None where one of the two is not known.

    >>> counted_bytes({"params": 1000, "bits": 4})
    500.0
    """
    return None if row["params"] is None or row["bits"] is None else row["params"] * row["bits"] / 8


def rounded_weights(rows: Sequence[Row]) -> float | None:
    """Return how many of a model's weights are rounded, None without two files of it at fewer than 16 bits.

    Its files differ in the codes alone, so a bit more costs an eighth of a byte for each of them.

    >>> files = [{"bits": 8, "file_bytes": 1300}, {"bits": 4, "file_bytes": 900}]
    >>> rounded_weights(files)
    800.0
    """
    known = sorted((row["bits"], row["file_bytes"]) for row in rows if row["bits"] < FLOAT16)
    if len(known) < 2:
        return None
    (few, small), (many, large) = known[0], known[-1]
    return 8 * (large - small) / (many - few)


def findings(content: Mapping[str, Any]) -> list[str]:
    """Explain the size of each model's files below 16 bits, and what a printed size leaves out of a real one's."""
    measured = [row for row in content["rows"] if row["status"] == "done" and row["file_bytes"] is not None]
    embedded = content["profile"] == "embedded"
    said: list[str] = []
    for _, group in groupby(measured, key=lambda row: (row["architecture"], row["method"].partition(",")[0])):
        said += _explain(list(group), embedded)
    return said


def _explain(rows: Sequence[Row], embedded: bool) -> Iterator[str]:
    weights = rounded_weights(rows)
    for row in rows if weights is not None else ():
        if row["bits"] == FLOAT16 or weights is None:
            continue
        counted = counted_bytes(row) or 0.0
        rest = row["params"] - weights
        kept = rest * (FLOAT16 - row["bits"]) / 8  # more than the count has of what is not rounded
        scales = row["file_bytes"] - counted - kept
        text = (
            f"{row['architecture']}, {row['method']}: {row['params']:,} parameters at {row['bits']} bits are "
            f"{_mib(counted)} MiB, the file has {_mib(row['file_bytes'])}: {_mib(kept)} more, as {rest:,.0f} parameters "
            f"outside of the blocks' weights stay in float16, and {_mib(scales)} of scales, zero points and header"
        )
        printed = row["size_reported"]
        if printed is not None and not embedded:
            text += (
                f"; the printed {printed:g} MiB leaves out {row['file_bytes'] / MIB - printed:.2f} of these "
                f"{_mib(row['file_bytes'] - counted)}"
            )
        yield text


def _mib(count: float) -> str:
    return f"{count / MIB:.2f}" if abs(count) >= MIB / 100 else f"{count / MIB:.4f}"
