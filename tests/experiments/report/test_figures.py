"""The figures: their jobs, what is drawn, and a whole run."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.jobs.job import Job
from experiments.jobs.measure import MEASURES
from experiments.jobs.results import find_result
from experiments.report.pictures import draw_figure
from experiments.runner import campaign
from experiments.runner.plan import Options, make_plan, open_images
from experiments.runner.pool import run_here
from experiments.tables.catalogue import find
from tests.experiments.support.untrained import dense, job_for, run

pytestmark = pytest.mark.slow

FIGURES = ("figure1", "figure2", "figure3", "figure_loss")


@pytest.mark.parametrize("name", FIGURES)
def test_the_jobs_of_a_figure(name: str) -> None:
    table, _ = find(name)
    plan = make_plan(table, Options(calibration_samples=99, limit=7, steps=5), open_images("digits"))
    jobs = [job for item in plan for job in item.jobs]
    assert {job.seed for job in jobs} == {0, 1, 2}
    for job in jobs:
        assert job.measure in MEASURES.names()
        assert (job.calibration_samples, job.limit, job.epochs) == (99, 7, 0)
        assert dict(job.changes) == ({"allocator": "uniform", "steps": 5} if name == "figure3" else {})


def draw(name: str, results: dict[str, Any]) -> Figure:
    table, _ = find(name)
    return draw_figure(table, results, f"{table.title} · digits stand-in, not ImageNet")


def result(measure: str, model: str, seed: int) -> dict[str, Any]:
    job = job_for(measure, model, seed)
    return {"job": job.as_json(), "measured": run(measure, dense(model), job)}


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request: pytest.FixtureRequest) -> tuple[str, Figure]:
    """A figure of two untrained models."""
    table, _ = find(request.param)
    results = {}
    for row in table.runnable:
        if row.standin in ("digits_deit_base", "digits_swin_base"):
            found = result(str(row.measure), row.standin.replace("base", "small"), 0)
            results[row.id] = [found, {**found, "job": {**found["job"], "seed": 1}}]
    return request.param, draw(request.param, results)


def test_lines_are_means_over_the_seeds() -> None:
    found = [result("compensation", "digits_deit_small", seed) for seed in (0, 1)]
    heights = [own["measured"]["methods"]["svd"]["unseen"][0] for own in found]
    assert heights[0] != heights[1]
    figure = draw("figure3", {"deit_b/attn-proj-50": found})
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(sum(heights) / 2)


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(campaign, "run_pool", lambda tasks, workers, threads, view: run_here(tasks, view))
    small = ["--seeds", "0", "--calibration-samples", "32", "--no-wandb", "--workers", "1"]
    command = ["run", "figure1/deit_b", *small, "--results", str(tmp_path)]
    for _ in range(2):  # the second time there is nothing left to run
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
    said = capsys.readouterr().err
    ran = json.loads((tmp_path / "figure1" / "plan.json").read_text())["command"]
    assert shlex.split(ran) == ["python", "-m", "experiments", *command]
    assert said.count("jobs to run") == 1
    assert "figure1.json, figure1.png, figure1.pdf" in said
    assert (tmp_path / "figure1" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure1" / "figure1.png").stat().st_size > 20_000
    assert (tmp_path / "figure1" / "figure1.pdf").read_bytes().startswith(b"%PDF")
    content = json.loads((tmp_path / "figure1" / "figure1.json").read_text())
    (result,) = content["rows"]["deit_b/energy"]
    assert find_result(tmp_path, Job.from_json(result["job"])) == result
    assert result["measured"]["images"]["calibration"] == 32
    assert result["seconds"]["total"] > 0
    assert result["provenance"]["calibration"]["samples"] == 32
