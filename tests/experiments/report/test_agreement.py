"""Whether a run's numbers are those that are published."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.jobs.job import Job
from experiments.report.agreement import agreement
from experiments.report.publish import publish
from experiments.report.write import write_report
from experiments.runner.plan import PLAN, Options, as_json, make_plan
from tests.experiments.support.synthetic import IMAGES, TABLE, result, write

OPTIONS = Options(steps=100, seeds=(0, 1))
COUNT = 8  # jobs of the table: four rows, two seeds


def run(folder: Path, **changes: Any) -> None:
    """Run the whole table; ``changes`` of the results of m/svd-40, seed 1."""
    (folder / TABLE.name).mkdir(parents=True, exist_ok=True)
    plan = make_plan(TABLE, OPTIONS, IMAGES)
    (folder / TABLE.name / PLAN).write_text(json.dumps(as_json(TABLE, OPTIONS, IMAGES, plan)))
    for item in plan:
        for job in item.jobs:
            own = changes if (item.row.id, job.seed) == ("m/svd-40", 1) else {}
            write(folder, job, made(job, **own))


def made(job: Job, **changes: Any) -> dict[str, Any]:
    provenance = {
        "source": "",
        "git": {"commit": "0" * 16, "dirty": False},
        "versions": {"torch": "2.15.0", "timm": "1.0.0"},
        "device": "cpu",
        "seed": job.seed,
    }
    fields = {"provenance": provenance, "finetune": {"epochs": 20}}
    return {**result(job, "new", 90.0 + job.seed), **fields, **changes}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with the table as it was published, and nothing run since."""
    run(tmp_path / "then")
    write_report(tmp_path / "then", TABLE)
    publish(tmp_path / "then", TABLE, tmp_path / "published")
    return tmp_path / "published"


def test_what_differs_most_is_named(published: Path, tmp_path: Path) -> None:
    """By hand: top-1 of 91 against 90.5, and an error of 0.11 against 0.1."""
    run(tmp_path, top1={"dense": 96.0, "before": None, "after": 90.5}, relative_error_held_out=0.1)
    found = agreement(tmp_path, TABLE, published)
    assert found is not None
    assert (found.jobs, found.equal) == (COUNT, COUNT - 1)
    assert found.points == (0.5, "m/svd-40")
    assert found.share == (pytest.approx(0.01 / 0.11), "m/svd-40")
    assert found.sentence == (
        "8 jobs of this run are published, too, 7 with equal numbers; top-1 differs by at most 0.5 points (m/svd-40); "
        "other numbers by at most 9.1e-02 of their value (m/svd-40)"
    )
