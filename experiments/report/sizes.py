"""Say of Table 4, from its own numbers, what a file holds beside the weights' bits that a paper counts."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from experiments.report.formats import file_size, human

Row = Mapping[str, Any]
MIB = 2**20
FLOAT16 = 16  # bits of all that is not rounded


def counted_bytes(row: Row) -> float | None:
    """Return the bytes of all parameters at the row's number of bits, None where one of the two is not known.

    >>> counted_bytes({"params": 1000, "bits": 4})
    500.0
    """
    return None if row["params"] is None or row["bits"] is None else row["params"] * row["bits"] / 8


def of_file(row: Row) -> Row:
    """Return the row for a drawing: one that measured a file of a given size has that file's bytes and top-1.

    Its parameters are those of the dense model, so they say nothing of its size and are left out.

    >>> of_file({"stored_bytes": 900, "stored_top1": 80.0, "top1": None, "params": 7, "macs": 8})["file_bytes"]
    900
    """
    if row.get("stored_bytes") is None:
        return row
    return {**row, "file_bytes": row["stored_bytes"], "top1": row["stored_top1"], "params": None, "macs": None}


def rounded_weights(rows: Sequence[Row]) -> float | None:
    """Return how many of a model's weights are rounded, None without two files of it at fewer than 16 bits.

    Its files differ in the codes alone, so a bit more costs an eighth of a byte for each of them; headers differ by a few
    bytes, so the count is off by a few weights.

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
    """Explain, once for each model, how large its file is beside the weights' bits that a paper counts."""
    measured = [row for row in content["rows"] if row["status"] == "done" and row["file_bytes"] is not None]
    embedded = content["profile"] == "embedded"
    groups = groupby(measured, key=lambda row: (row["architecture"], row["params"]))
    said = (_explain(list(group), embedded) for _, group in groups)
    return [text for text in said if text is not None]


def _explain(rows: Sequence[Row], embedded: bool) -> str | None:
    """Explain one file of a model, None where its rounded weights are not known.

    Take the file whose size is printed below 16 bits, else the one of fewest bits: what it adds weighs most there.
    """
    weights = rounded_weights(rows)
    if weights is None:
        return None
    below = sorted((row for row in rows if row["bits"] < FLOAT16), key=lambda row: row["bits"])
    row = next((row for row in below if row["size_reported"] is not None and not embedded), below[0])
    counted = counted_bytes(row) or 0.0
    rest = row["params"] - weights
    kept = rest * (FLOAT16 - row["bits"]) / 8  # more than the count has of what is not rounded
    scales = row["file_bytes"] - counted - kept
    text = (
        f"{row['architecture']}, {row['method']}: {human(row['params'])} parameters at {row['bits']} bits are "
        f"{file_size(counted)}. The file has {file_size(row['file_bytes'])}: {file_size(kept)} more because {human(rest)} "
        f"parameters outside the blocks' weights stay in float16, and {file_size(scales)} for scales, zero points and header"
    )
    printed = row["size_reported"]
    if printed is not None and not embedded:
        text += (
            f". The printed {printed:g} MiB leaves out {file_size(row['file_bytes'] - printed * MIB)} of these "
            f"{file_size(row['file_bytes'] - counted)}"
        )
    return text
