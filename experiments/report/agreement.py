"""Compare what was run here with what is published of the same revisions, recipe and images, number by number."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.jobs.job import read_json
from experiments.report.origins import origin
from experiments.report.render import PUBLISHED, published_file
from experiments.report.rows import finished
from experiments.report.seeds import numbers, same_but_seeds, seeds_of
from experiments.runner.plan import read_plan
from experiments.tables.rows import Table
from lowrank_vit.runtime.errors import amount

LEAST = 1e-3  # of what a difference is a share, where the numbers are smaller: errors that are rounding alone
TIMES = ("seconds", "custom_step", "speedup_1", "speedup_8")  # differ in every run
Numbers = Mapping[str, float]  # by their names; those of a figure by their paths in the JSON


@dataclass(frozen=True)
class Agreement:
    """Tell how many of a table's jobs are published, too, how many of these have equal numbers, and what differs most.

    ``points`` is the largest difference of a top-1, in points, and ``share`` the largest relative one of any other number
    that does not measure time; each names its row.
    """

    jobs: int
    equal: int
    points: tuple[float, str]
    share: tuple[float, str]
    commits: tuple[str, ...]  # of the results here

    @property
    def sentence(self) -> str:
        """Say it in words."""
        compared = f"{amount(self.jobs, 'job')} of this run {'is' if self.jobs == 1 else 'are'} published, too"
        if self.equal == self.jobs:
            return f"{compared}: all numbers are equal"
        (points, row), (share, other) = self.points, self.share
        return (
            f"{compared}, {self.equal} with equal numbers; top-1 differs by at most {points:.2g} points"
            f"{f' ({row})' if points else ''}; other numbers by at most {share:.1e} of their value"
            f"{f' ({other})' if share else ''}"
        )


def agreement(results: Path, table: Table, folder: Path = PUBLISHED) -> Agreement | None:
    """Compare the last run of a table with what is published in ``folder``; None where they have no job in common.

    Rows that are published as means of several seeds alone are not compared.
    """
    plan = read_plan(results, table)
    content = read_json(published_file(plan, table, folder)) or {"rows": []}
    known, figure = {row["id"]: row for row in content["rows"]}, content.get("measured", {})
    differences: list[tuple[float, float, str]] = []
    commits: set[str] = set()
    for name, of_row in finished(results, plan).items():
        own = origin(of_row)
        if name not in known or not same_but_seeds(own, known[name]):
            continue
        commits.update(own["commits"])
        there = seeds_of(known[name])
        if name in figure:
            there = {
                str(seed): dict(_flat(each)) for seed, each in zip(known[name]["seeds"], figure[name], strict=True)
            }
        for result in of_row:
            here = dict(_flat(result["measured"])) if name in figure else numbers(result)
            if (seed := str(result["provenance"]["seed"])) in there:
                differences.append((*_differences(here, there[seed]), name))
    if not differences:
        return None
    return Agreement(
        jobs=len(differences),
        equal=sum(not points and not share for points, share, _ in differences),
        points=max((points, name) for points, _, name in differences),
        share=max((share, name) for _, share, name in differences),
        commits=tuple(sorted(commits)),
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in a JSON value with their paths."""
    if isinstance(value, int | float):
        yield name, value
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(item, f"{name}/{key}")


def _differences(here: Numbers, there: Numbers) -> tuple[float, float]:
    """Return the largest difference of a top-1, in points, and that of another number but times, as a share of it."""
    both = [(name, here[name], there[name]) for name in here.keys() & there.keys() if not name.endswith(TIMES)]
    points = [abs(one - other) for name, one, other in both if "top1" in name]
    shares = [
        abs(one - other) / max(abs(one), abs(other), LEAST)
        for name, one, other in both
        if "top1" not in name and one != other
    ]
    return max(points, default=0.0), max(shares, default=0.0)
