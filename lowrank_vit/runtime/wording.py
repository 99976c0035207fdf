"""Words of messages and titles."""

from __future__ import annotations


def amount(count: int, noun: str) -> str:
    """Write a count beside its noun.

    >>> amount(1, "thread"), amount(2, "thread")
    ('1 thread', '2 threads')
    """
    return f"{count} {noun}{'s' * (count != 1)}"
