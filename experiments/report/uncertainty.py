"""Say how sure a number is: of how many seeds it is the mean, of how many images, and of which images beside other rows."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import comb, sqrt
from typing import Any

from experiments.report.seeds import SPREADS

Row = Mapping[str, Any]  # of ``table.json``
LEVEL = 0.05  # of McNemar's test
TOP1 = {of: error for error, of in SPREADS.items() if "top1" in of}  # measured on the evaluation's images: its error


def standard_error(percent: float, images: int) -> float:
    """Return the binomial standard error of a top-1, in points.

    >>> round(standard_error(95, 500), 2), standard_error(50, 100)
    (0.97, 5.0)
    """
    return sqrt(percent * (100 - percent) / images)


def fewer_seeds(rows: Sequence[Row]) -> dict[str, int]:
    """Count the seeds of the rows that have fewer than others, by the row's name."""
    counts = {row["id"]: len(row["seeds"]) for row in rows if row["seeds"]}
    most = max(counts.values(), default=0)
    return {name: count for name, count in counts.items() if count < most}


def marked(rows: Sequence[Row]) -> list[Row]:
    """Add to each method its number of seeds where other rows have more: ``"Ours (n=1)"``."""
    fewer = fewer_seeds(rows)
    return [{**row, "method": f"{row['method']} (n={fewer[row['id']]})"} if row["id"] in fewer else row for row in rows]


def images_of(rows: Sequence[Row]) -> str:
    """Describe on how many images top-1 was measured, and what that leaves open; nothing where it is not known."""
    counts = sorted({row["images"] for row in rows if row.get("images")})
    return "; ".join(
        f"top-1 of {count:,} images: one is {100 / count:.2g} points, the binomial standard error "
        f"{standard_error(95, count):.2g} at 95 %, {standard_error(50, count):.2g} at 50 %"
        for count in counts
    )


def images_evaluated(row: Row) -> int | None:
    """Return how many images a row's accuracy is of; None where nothing was measured on any."""
    if row.get("images"):
        return int(row["images"])
    job = row.get("job")
    if not job:
        return None
    return int(job.get("limit") or job["images"].split("+")[1])


def with_image_errors(row: Row) -> dict[str, Any]:
    """Return a row with the binomial standard error of each top-1 in place of its spread over the seeds.

    On real images seeds draw nearly the same calibration images and evaluate the same ones: their spread tells nothing of
    another sample.
    """
    count = images_evaluated(row)
    measured = {of: error for of, error in TOP1.items() if row.get(of) is not None and count}
    return {**row, **{error: standard_error(row[of], count or 1) for of, error in measured.items()}}


def said_of_errors(rows: Sequence[Row]) -> str:
    """Say what follows a ± where it is ``with_image_errors``."""
    counts = sorted({count for row in rows if (count := images_evaluated(row))})
    images = " or ".join(f"{count:,}" for count in counts)
    return f"±: the binomial standard error over {images} images." if counts else ""


def paired(one: Row, other: Row) -> tuple[int, int] | None:
    """Count the images that only ``one`` and that only ``other`` classifies right, of the first seed that both have.

    None where either has not kept its answers, or where they are of different images.
    """
    seeds = sorted((one.get("hits") or {}).keys() & (other.get("hits") or {}).keys())
    count = images_evaluated(one)
    if not seeds or count != images_evaluated(other):
        return None
    first, second = (int.from_bytes(base64.b64decode(row["hits"][seeds[0]])) for row in (one, other))
    return (first & ~second).bit_count(), (second & ~first).bit_count()


def mcnemar(only_one: int, only_other: int) -> float:
    """Return the exact two-sided p-value that two classifiers err equally often, from the images that tell them apart.

    >>> round(mcnemar(1, 6), 4), mcnemar(3, 3)
    (0.125, 1.0)
    """
    total, least = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(comb(total, each) for each in range(least + 1)) / 2**total)


def neighbours(rows: Sequence[Row]) -> Iterator[tuple[Row, Row, int, int]]:
    """Yield pairs of rows of one model and reduction, neighbours by accuracy, better first, with their ``paired`` counts."""
    scores = {row["id"]: row.get("stored_top1") if row.get("top1") is None else row["top1"] for row in rows}
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if scores[row["id"]] is not None and row["protocol"] != "dense":
            groups.setdefault((row["architecture"], row["cost"], row["reduction"]), []).append(row)
    for group in groups.values():
        for better, worse in pairwise(sorted(group, key=lambda row: -float(scores[row["id"]] or 0.0))):
            counts = paired(better, worse)
            if counts is not None:
                yield better, worse, *counts


def said_of_pairs(rows: Sequence[Row]) -> str:
    """Name the neighbours that the images do not tell apart; nothing where no two have kept their answers."""
    pairs = list(neighbours(rows))
    alike = [
        f"{better['method']} and {worse['method']}{_at(better)} {first} : {second}, p = {p:.2g}"
        for better, worse, first, second in pairs
        if (p := mcnemar(first, second)) > LEVEL
    ]
    if alike:
        return (
            f"Neighbours not told apart by McNemar's exact test (images that only one has right): {'; '.join(alike)}."
        )
    return f"Neighbours whose answers are kept differ by McNemar's exact test, p <= {LEVEL}." if pairs else ""


def _at(row: Row) -> str:
    return f", -{100 * row['reduction']:.0f} %," if row.get("stored_top1") is None and row["reduction"] else ""


def caveats(rows: Sequence[Row]) -> list[str]:
    """List the sentences below a table about its images and its seeds."""
    images, fewer = images_of(rows), sorted(set(fewer_seeds(rows).values()))
    said = [f"{images[0].upper()}{images[1:]}."] if images else []
    if fewer:
        marks = " and ".join(f"(n={count})" for count in fewer)
        said.append(f"{marks}: of fewer seeds than the other rows, not to be ranked among their means.")
    return said
