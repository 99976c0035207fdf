"""Progress bars on the error stream: the standard output is for results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def track(items: Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """The items, with a bar while they are gone through, where ``shown`` and where somebody may be looking."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield from items
        return
    with Progress(console=console, transient=True) as bar:
        yield from bar.track(items, description=description)
