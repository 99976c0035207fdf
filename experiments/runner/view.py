"""Show how the jobs go, on the error stream: one live display in a terminal, else a line for each job that ends."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from experiments.jobs.attempt import DONE, Outcome
from experiments.jobs.task import Task
from experiments.runner.estimate import Expected
from lowrank_vit.runtime.progress import make_console


def duration(seconds: float) -> str:
    """Write a duration in words.

    >>> duration(42), duration(400), duration(9000)
    ('42 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def show_expected(tasks: Sequence[Task], times: Sequence[Expected], console: Console) -> None:
    """Show a line for each row: its jobs, the time of their arithmetic, of loading their images, and of both."""
    rows: dict[str, list[Expected]] = {}
    for task, expected in zip(tasks, times, strict=True):
        rows.setdefault(f"{task.table}/{task.row}", []).append(expected)
    table = RichTable(title="expected", box=None)
    for column in ("row", "jobs", "arithmetic", "loading", "in all"):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for name, own in rows.items():
        sums = (sum(getattr(expected, part) for expected in own) for part in ("arithmetic", "loading", "total"))
        table.add_row(name, str(len(own)), *map(duration, sums))
    console.print(table, markup=False)


class LiveView:
    """Show the jobs done of all, the time that is left, and what each worker is at.

    ``expected``: seconds of every job, by its key; what they turn out to take corrects the time that is left.
    """

    def __init__(self, expected: Mapping[str, float], console: Console | None = None) -> None:
        self.console = console or make_console(stderr=True)
        self.expected, self.done, self.spent, self.start = expected, 0, 0.0, time.monotonic()
        self.lines: dict[str, TaskID] = {}
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.all = self.progress.add_task("", total=max(sum(expected.values()), 1e-9), left="")

    def __enter__(self) -> "LiveView":
        self._count()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, task: Task, said: str) -> None:
        """Show a line under the bar for each job that runs."""
        text = f"  {escape(task.name)}: {escape(said)}"
        line = self.lines.get(task.job.key)
        if line is None:
            self.lines[task.job.key] = self.progress.add_task(text, total=None, left="")
        else:
            self.progress.update(line, description=text)

    def end(self, outcome: Outcome) -> None:
        """Count the job; print how it ended where there is no display, and always if it failed."""
        self.done += 1
        self.spent += self.expected[outcome.task.job.key]
        line = self.lines.pop(outcome.task.job.key, None)
        if line is not None:
            self.progress.remove_task(line)
        self._count()
        if outcome.status != DONE or not self.console.is_terminal:
            count = f"[{self.done}/{len(self.expected)}]"
            status = "" if outcome.status == DONE else f"{outcome.status}: "
            self.console.print(
                f"{count} {outcome.task.name}: {status}{outcome.said}", markup=False, highlight=False, soft_wrap=True
            )

    def _count(self) -> None:
        left = sum(self.expected.values()) - self.spent
        pace = (time.monotonic() - self.start) / self.spent if self.spent else None
        said = "" if pace is None else f"{duration(left * pace)} left"
        self.progress.update(
            self.all, completed=self.spent, description=f"{self.done}/{len(self.expected)} jobs", left=said
        )
