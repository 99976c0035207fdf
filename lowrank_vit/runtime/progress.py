"""Progress on the error stream (the standard output is for results): bars in a terminal, lines elsewhere; and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, TaskID

from lowrank_vit.runtime.progress import make_console

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines; shorter phases say nothing


class ProgressLines(Progress):
    """Show progress on a stream that is not a terminal: ``calibrate 3 of 16, 21 s``, at intervals and at the end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, auto_refresh=False, disable=True, get_time=lambda: monotonic())
        self._said: dict[TaskID, float] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and say so if it is time."""
        super().advance(task_id, advance)
        task = self._tasks[task_id]
        seconds = task.elapsed or 0.0
        if seconds - self._said.get(task_id, 0.0) >= EVERY or (task.finished and seconds >= EVERY):
            self._said[task_id] = seconds
            total = "" if task.total is None else f" of {task.total:.0f}"
            self.console.print(
                f"{task.description} {task.completed:.0f}{total}, {seconds:.0f} s", highlight=False, markup=False
            )


def progress_bars(shown: bool) -> Progress:
    """Make bars on the error stream, or lines where that is no terminal; they are visible only if ``shown``."""
    console = make_console(stderr=True)
    if shown and not console.is_terminal:
        return ProgressLines(console)
    return Progress(console=console, transient=True, disable=not shown)


def shown_by_default(progress: bool | None) -> bool:
    """Return whether to show progress: as asked for or, where nothing is said, in a terminal and in a notebook."""
    console = make_console(stderr=True)
    return console.is_terminal or console.is_jupyter if progress is None else progress


def say(line: str) -> None:
    """Print a line on the error stream."""
    make_console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """Yield the items, with a bar for those that are done."""
    with progress_bars(shown) as bar:
        yield from bar.track(items, description=description)


@dataclass
class Stopwatch:
    """Add up the seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
