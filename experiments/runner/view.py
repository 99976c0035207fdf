"""Show how the jobs go, on the error stream: one live display in a terminal, else a line for each job that ends."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from experiments.jobs.run import DONE, Outcome
from experiments.jobs.task import Task

PERIOD = 24 * 3600.0  # seconds over which the speed is averaged: jobs may be long


def duration(seconds: float) -> str:
    """Write a duration in words.

    >>> duration(42), duration(400), duration(9000)
    ('42 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def show_expected(tasks: Sequence[Task], times: Sequence[float], console: Console) -> None:
    """Show a line for each row: its jobs, and the time that they take together."""
    rows: dict[str, list[float]] = {}
    for task, seconds in zip(tasks, times, strict=True):
        rows.setdefault(f"{task.table}/{task.row}", []).append(seconds)
    table = RichTable("row", "jobs", "time", title="expected", box=None)
    for name, own in rows.items():
        table.add_row(name, str(len(own)), duration(sum(own)))
    console.print(table, markup=False)


class LiveView:
    """Show the jobs done of all, the time that is left, and what each worker is at, while ``progress`` is open.

    ``expected``: seconds of every job, by its key.
    """

    def __init__(self, expected: Mapping[str, float], console: Console) -> None:
        self.console, self.expected, self.done = console, expected, 0
        self.lines: dict[str, TaskID] = {}
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=PERIOD,
        )
        self.all = self.progress.add_task(f"0/{len(expected)} jobs", total=max(sum(expected.values()), 1e-9))

    def stage(self, task: Task, said: str) -> None:
        """Show a line under the bar for each job that runs."""
        if task.job.key not in self.lines:
            self.lines[task.job.key] = self.progress.add_task("", total=None)
        self.progress.update(self.lines[task.job.key], description=f"  {escape(task.name)}: {escape(said)}")

    def end(self, outcome: Outcome) -> None:
        """Count the job; print how it ended where there is no display, and always if it failed."""
        self.done += 1
        key, count = outcome.task.job.key, f"{self.done}/{len(self.expected)}"
        if key in self.lines:
            self.progress.remove_task(self.lines.pop(key))
        self.progress.update(self.all, advance=self.expected[key], description=f"{count} jobs")
        if outcome.status != DONE or not self.console.is_terminal:
            status = "" if outcome.status == DONE else f"{outcome.status}: "
            line = f"[{count}] {outcome.task.name}: {status}{outcome.said}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
