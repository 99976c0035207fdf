"""The figures: their jobs, what is drawn, and a whole run."""

from __future__ import annotations

import json
import shlex
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from experiments.__main__ import main
from experiments.jobs.job import Job
from experiments.jobs.measure import MEASURES
from experiments.jobs.results import find_result
from experiments.report.drawing.panels import SIZE
from experiments.report.pictures import draw_figure
from experiments.report.plots import add_key
from experiments.runner import campaign
from experiments.runner.plan import Options, make_plan, open_images
from experiments.runner.pool import run_here
from experiments.tables.catalogue import find
from tests.experiments.support.untrained import dense, job_for, run

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


def test_panels_are_labelled(drawn: tuple[str, Figure]) -> None:
    name, figure = drawn
    assert len(figure.axes) == {"figure1": 2 * 4, "figure2": 2 * 6, "figure3": 2, "figure_loss": 2}[name]
    heading = figure.get_suptitle()
    assert heading.startswith(f"Figure {'B' if name == 'figure_loss' else name[-1]}:")
    assert "not ImageNet" in heading
    assert "mean over seeds 0, 1" in heading.replace("\n", " ")
    labels = {panel.get_xlabel() for panel in figure.axes} - {""}, {panel.get_ylabel() for panel in figure.axes} - {""}
    below, beside = {
        "figure1": ({"rank"}, "energy kept"),
        "figure2": ({"block", "layer type"}, "top-1, %"),
        "figure3": ({"block"}, "relative squared error"),
        "figure_loss": ({"predicted"}, "measured"),
    }[name]
    assert labels[0] == below
    assert all(beside in label for label in labels[1])
    (legend,) = figure.legends
    assert len(legend.get_texts()) >= 5
    assert all(len(panel.lines) > 4 for panel in figure.axes)


def texts_of(figure: Figure) -> list[Text]:
    """All that is written in a figure; ticks outside of their panel are not drawn."""
    found = [text for text in figure.texts if text.get_text()]
    for legend in figure.legends:
        found += [*legend.get_texts(), legend.get_title()]
    for panel in figure.axes:
        found += [panel.title, panel.xaxis.label, panel.yaxis.label]
        low, high = panel.get_xlim()
        found += [tick.label1 for tick in panel.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_text() and text.get_visible()]


def test_texts_are_legible_and_apart(drawn: tuple[str, Figure]) -> None:
    _, figure = drawn
    FigureCanvasAgg(figure).draw()
    texts = texts_of(figure)
    assert len(texts) > 15
    for text in texts:
        box = text.get_window_extent()
        assert text.get_fontsize() >= SIZE
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
    for one, other in combinations(texts, 2):
        assert not one.get_window_extent().overlaps(other.get_window_extent()), (one, other)


def test_lines_are_means_over_the_seeds() -> None:
    found = [result("compensation", "digits_deit_small", seed) for seed in (0, 1)]
    heights = [own["measured"]["methods"]["svd"]["unseen"][0] for own in found]
    assert heights[0] != heights[1]
    figure = draw("figure3", {"deit_b/attn-proj-50": found})
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(sum(heights) / 2)


def test_without_a_gradient_solver_there_is_no_line_for_it() -> None:
    job = job_for("compensation", changes={"solver": "closed_form"})
    measured = run("compensation", dense(), job)
    assert set(measured["methods"]) == {"svd", "before", "rank", "closed_form", "exact"}
    figure = draw("figure3", {"deit_b/attn-proj-50": [{"job": job.as_json(), "measured": measured}]})
    assert len(figure.axes[0].lines) == 5
    assert "Adam" not in figure.axes[0].get_title()


def test_a_capped_rank_is_said() -> None:
    figure = draw("figure3", {"swin_b/attn-proj-50": [result("compensation", "digits_swin_base", 0)]})
    assert figure.axes[0].get_title().endswith("mean-input rank capped by the tokens, blocks 2, 3")  # 9 > 4 tokens


def test_a_figure_with_a_part_missing() -> None:
    figure = draw("figure2", {"deit_b/layers": [result("accuracy_by_layer", "digits_deit_small", 0)]})
    assert [panel.get_visible() for panel in figure.axes] == [False] * 3 + [True] * 3
    assert "top-1, %" in figure.axes[3].get_ylabel()


def test_older_results_of_figure_2_are_drawn_without_the_mean_image() -> None:
    found = result("accuracy_by_layer", "digits_deit_small", 0)
    del found["measured"]["top1"]["representative"]
    figure = draw("figure2", {"deit_b/layers": [found]})
    assert [panel.get_title().partition("\n")[2] for panel in figure.axes] == 2 * ["plain SVD", "whitened SVD"]


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


def test_a_legend_is_no_wider_than_its_figure() -> None:
    figure = Figure(figsize=(3.6, 3), layout="constrained")
    figure.add_subplot()
    add_key(figure, [Line2D([], [], label=f"a method with a long name, {index}") for index in range(6)], columns=3)
    (legend,) = figure.legends
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert len(legend.get_texts()) == 6
