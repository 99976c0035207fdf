"""Compare what was run here with what is published of the same revisions, recipe and images, number by number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.jobs.results import read_json
from experiments.report.origins import origin
from experiments.report.render import PUBLISHED, published_file
from experiments.report.rows import FIELDS, finished
from experiments.report.seeds import NUMBERS, add_up, numbers, same_but_seeds, seeds_of
from experiments.runner.plan import read_plan
from experiments.tables.rows import Table
from lowrank_vit.runtime.errors import amount

TIMES = ("seconds", "custom_step", "speedup_1", "speedup_8")  # differ in every run
Result = Mapping[str, Any]
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
        parts = (
            f"{self.equal} with equal numbers",
            f"top-1 differs by at most {self.points[0]:.2g} points{_in_row(self.points)}",
            f"other numbers by at most {self.share[0]:.1e} of their value{_in_row(self.share)}",
        )
        return f"{compared}, {'; '.join(parts)}"


def agreement(results: Path, table: Table, folder: Path = PUBLISHED) -> Agreement | None:
    """Compare the last run of a table with what is published in ``folder``; None where they have no job in common."""
    plan = read_plan(results, table)
    content = read_json(published_file(plan, table, folder))
    if content is None:
        return None
    known = {row["id"]: dict.fromkeys(FIELDS) | row for row in content["rows"]}
    here = finished(results, plan)
    origins = {name: origin(of_row) for name, of_row in here.items() if name in known}
    alike = [name for name, its_origin in origins.items() if same_but_seeds(its_origin, known[name])]
    compared = [
        (jobs, (_points(*pair), name), (_share(*pair), name))
        for name in alike
        for jobs, *pair in _pairs(here[name], known[name], content.get("measured", {}).get(name))
    ]
    if not compared:
        return None
    return Agreement(
        jobs=sum(jobs for jobs, _, _ in compared),
        equal=sum(jobs for jobs, points, share in compared if not points[0] and not share[0]),
        points=max(points for _, points, _ in compared),
        share=max(share for _, _, share in compared),
        commits=tuple(sorted({commit for name in alike for commit in origins[name]["commits"]})),
    )


def _pairs(
    of_row: Sequence[Result], published: Mapping[str, Any], measured: Sequence[Any] | None
) -> Iterator[tuple[int, Numbers, Numbers]]:
    """Pair the numbers here with those published, each with its count of jobs: seed by seed, or else means of all seeds.

    ``measured``: what is published of each seed of a figure.
    """
    if measured is None:
        here, there = {_seed(result): numbers(result) for result in of_row}, seeds_of(published)
    else:
        here = {_seed(result): dict(_flat(result["measured"])) for result in of_row}
        there = {str(seed): dict(_flat(of_seed)) for seed, of_seed in zip(published["seeds"], measured, strict=True)}
    for seed in here.keys() & there.keys():
        yield 1, here[seed], there[seed]
    if not there and sorted(map(int, here)) == published["seeds"]:
        means = add_up(here)
        both = [name for name in NUMBERS if means[name] is not None and published[name] is not None]
        yield len(here), {name: means[name] for name in both}, {name: published[name] for name in both}


def _seed(result: Result) -> str:
    return str(result["provenance"]["seed"])


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in a JSON value with their paths."""
    if isinstance(value, int | float):
        yield name, value
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat(item, f"{name}/{key}")


def _both(here: Numbers, there: Numbers, points: bool) -> Iterator[tuple[float, float]]:
    """Yield the numbers that both have: those in points, or all others that are not times."""
    for name in here.keys() & there.keys():
        if ("top1" in name) == points and not name.endswith(TIMES):
            yield here[name], there[name]


def _points(here: Numbers, there: Numbers) -> float:
    """Return the largest difference of a top-1, in points."""
    return max((abs(one - other) for one, other in _both(here, there, points=True)), default=0.0)


def _share(here: Numbers, there: Numbers) -> float:
    """Return the largest difference of another number, as a share of it."""
    both = _both(here, there, points=False)
    return max((abs(one - other) / max(abs(one), abs(other)) for one, other in both if one != other), default=0.0)


def _in_row(largest: tuple[float, str]) -> str:
    return f" ({largest[1]})" if largest[0] else ""
