"""Say how sure a number is: of how many seeds it is the mean, beside other rows, and of how many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

Row = Mapping[str, Any]


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


def caveats(rows: Sequence[Row]) -> list[str]:
    """List the sentences below a table about its images and its seeds."""
    images, fewer = images_of(rows), sorted(set(fewer_seeds(rows).values()))
    said = [f"{images[0].upper()}{images[1:]}."] if images else []
    marks = " and ".join(f"(n={count})" for count in fewer)
    return (
        [*said, f"{marks}: of fewer seeds than the other rows, not to be ranked among their means."] if fewer else said
    )
