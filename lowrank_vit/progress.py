"""How far and how long: progress bars on the error stream (the standard output is for results), seconds of each stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def progress_bars(shown: bool) -> Progress:
    """Bars on the error stream, where ``shown`` and where somebody may be looking; nothing at all otherwise."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not (shown and console.is_terminal))


def track(items: Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """The items, with a bar while they are gone through."""
    with progress_bars(shown) as bar:
        yield from bar.track(items, description=description)


@dataclass
class Stopwatch:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
