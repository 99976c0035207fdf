"""Test the picture of accuracy against images: a line before each training, once for each compressed model."""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D

from experiments.report.images_plot import draw_images


def table() -> dict[str, Any]:
    """Return a table of two trainings of one model and one of another, at two numbers of images."""
    shared = {
        "architecture": "A",
        "reduction": 0.5,
        "model": "a",
        "target": None,
        "status": "done",
        "seeds": [0],
        "n": 10,
    }
    values = {"best, distilled": (50.0, 60.0), "best, distilled, mixed": (50.0, 55.0), "pivoted": (58.0, 70.0)}
    rows = [
        {
            **shared, "method": method, "calibration_images": count, "top1_before_finetune": before + count / 100,
            "top1": after + count / 100,
        }
        for method, (before, after) in values.items()
        for count in (100, 400)
    ]  # fmt: skip
    return {"title": "Table I", "rows": rows, "data": {"spec": "digits", "kind": "digits"}, "images": 10}


def test_each_model_has_its_own_line_before_the_training() -> None:
    (panel,) = draw_images(table()).axes
    lines: list[Line2D] = list(panel.lines)
    before = [list(line.get_ydata()) for line in lines if line.get_markerfacecolor() == "white"]
    after = [list(line.get_ydata()) for line in lines if line.get_markerfacecolor() != "white"]
    assert before == [[51.0, 54.0], [59.0, 62.0]]  # not a third one: "mixed" trains the first model
    assert after == [[61.0, 64.0], [56.0, 59.0], [71.0, 74.0]]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["100", "400"]
