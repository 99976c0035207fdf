"""Cases of a parametrised test: a few run always, the others with the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], fast: int = 2) -> list[Any]:
    """The cases, of which all but the first ones are marked as slow."""
    given = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (place >= fast)) for place, case in enumerate(given)]


def in_turn(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """As many cases as the longest axis has values, in which every value of every axis comes up.

    >>> in_turn("abcd", (1, 2, 3))
    [('a', 1), ('b', 2), ('c', 3), ('d', 1)]
    """
    values = [list(axis) for axis in axes]
    return [tuple(axis[place % len(axis)] for axis in values) for place in range(max(map(len, values)))]
