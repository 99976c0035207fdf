"""Write numbers as people read them."""

import re

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def human(count: float) -> str:
    """Write a count with three digits and its unit: ``51.9M``.

    >>> human(51_943_210), human(8_912), human(640)
    ('51.9M', '8.91k', '640')
    """
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


def number(value: float, spread: float | None = None, digits: int = 2) -> str:
    """Write a number, with its spread where there is one.

    >>> number(81.8), number(95.25, 0.5, digits=1)
    ('81.80', '95.2 ± 0.5')
    """
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def of_share(value: float, spread: float | None = None, digits: int = 2) -> str:
    """Write a share as a percentage.

    >>> of_share(0.05), of_share(0.05, 0.001, digits=1)
    ('5.00', '5.0 ± 0.1')
    """
    return number(100 * value, None if spread is None else 100 * spread, digits)


def file_size(count: float) -> str:
    """Write bytes in MiB, below one MiB in KiB.

    >>> file_size(88_500_000), file_size(40_000)
    ('84.4 MiB', '39.1 KiB')
    """
    return f"{count / 2**20:.1f} MiB" if count > 2**20 else f"{count / 2**10:.1f} KiB"
