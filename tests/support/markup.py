"""Markup in the texts of a foreign file: what a page or a card must not pass on."""

from typing import Any


def poisoned(value: Any, markup: str) -> Any:
    """The same value with ``markup`` behind every text in it; the keys of its entries stay."""
    if isinstance(value, dict):
        return {key: poisoned(part, markup) for key, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part, markup) for part in value]
    return value + markup if isinstance(value, str) else value
