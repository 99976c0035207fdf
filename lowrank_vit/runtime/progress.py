"""Text for people, at the terminal's width, or whole in a pipe; progress on the error stream; and seconds."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress, TaskID

WIDE = 1000  # columns: more than any line has
T = TypeVar("T")
EVERY = 10.0  # seconds between two lines; shorter phases say nothing


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console on the standard output or the error stream."""
    return Console(quiet=quiet, **console_options(stderr=stderr))


def console_options(*, stderr: bool = False) -> dict[str, Any]:
    """Return the options of a console that cuts nothing.

    Rich takes a stream that is no terminal for one of 80 columns, and cuts tables to it; here it has ``COLUMNS``, or as
    many as a line needs.
    """
    console = Console(stderr=stderr)
    known = console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ
    return {"stderr": stderr, "width": None if known else WIDE}


class ProgressLines(Progress):
    """Show progress on a stream that is not a terminal: ``calibrate 3 of 16, 21 s``, at intervals and at the end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, auto_refresh=False, disable=True, get_time=lambda: monotonic())
        self._said: dict[TaskID, float] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
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
