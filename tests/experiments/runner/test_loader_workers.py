"""From --loader-workers to the loaders of a job."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import timm

from experiments.jobs.job import Job
from experiments.jobs.stages import _images
from experiments.jobs.task import Task
from experiments.runner.campaign import _loader_workers
from lowrank_vit.data import loading
from tests.support.sources import ROOT


@pytest.mark.parametrize(
    ("options", "jobs", "expected"),
    [
        ({}, 1, 16),  # of 64 cores
        ({"devices": 8}, 1, 8),
        ({}, 16, 4),  # jobs side by side
        ({"devices": 8, "loader_workers": 3}, 1, 3),
        ({"loader_workers": 0}, 1, 0),
        ({"launcher": "slurm", "devices": 8}, 1, None),  # another machine's cores
        ({"data": "digits"}, 1, None),
        ({"launcher": "local"}, 32, 2),
    ],
)
def test_as_asked_for_else_a_share_of_the_cores(
    options: dict[str, Any], jobs: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "own_cores", lambda: 64)
    args = {"data": "imagefolder:x", "devices": 1, "loader_workers": None, "launcher": None, **options}
    assert _loader_workers(Namespace(**args), jobs) == expected


def test_they_reach_the_images() -> None:
    job = Job("test_vit", False, "imagefolder:x", "2+2", "svd", 0.4, 0)
    task = Task(job, "row", "X", "table2", ROOT, "imagefolder:nowhere", loader_workers=3)
    assert _images(task, timm.create_model("test_vit")).workers == 3
