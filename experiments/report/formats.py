"""Write numbers as people read them."""

import re

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def human(count: float | None) -> str:
    """Write a count with three digits and its unit: ``51.9M``.

    >>> human(51_943_210), human(8_912), human(640)
    ('51.9M', '8.91k', '640')
    """
    if count is None:
        return ""
    for unit, size in reversed(UNITS.items()):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{count:.0f}"


def printed_count(text: str | None) -> float | None:
    """Read the number that a printed count begins with.

    >>> printed_count("51.9M (-40%)"), printed_count("-")
    (51900000.0, None)
    """
    count = re.match(r"([\d.]+)([kMG]?)", text or "")
    return None if count is None else float(count[1]) * UNITS.get(count[2], 1)


def share(count: float | None, dense: float | None) -> str:
    """Write a count and what it saves: ``51.9M (-40.0%)``."""
    if count is None or not dense or count == dense:
        return human(count)
    return f"{human(count)} ({100 * (count / dense - 1):+.1f}%)"


def percent(value: float | None, spread: float | None = None, digits: int = 2) -> str:
    """Write a percentage, with its spread where there is one.

    >>> percent(81.8), percent(95.25, 0.5, digits=1)
    ('81.80', '95.2 ± 0.5')
    """
    return "" if value is None else f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def of_share(value: float | None, spread: float | None = None, digits: int = 2) -> str:
    """Write a share as a percentage.

    >>> of_share(0.05), of_share(0.05, 0.001, digits=1)
    ('5.00', '5.0 ± 0.1')
    """
    spread = None if spread is None else 100 * spread
    return percent(None if value is None else 100 * value, spread, digits)


def file_size(count: float | None) -> str:
    """Write bytes in MiB, below one MiB in KiB.

    >>> file_size(88_500_000), file_size(40_000)
    ('84.4 MiB', '39.1 KiB')
    """
    if count is None:
        return ""
    return f"{count / 2**20:.1f} MiB" if count > 2**20 else f"{count / 2**10:.1f} KiB"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with some digits after the point.

    >>> number(1.5), number(1.5, 0), number(None)
    ('1.50', '2', '')
    """
    return "" if value is None else f"{value:.{digits}f}"
