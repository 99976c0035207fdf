"""Table 1 in words and as a picture, from made-up rows."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.report.ablation import BASES, LABELS, draw, findings


def row(
    base: str, kind: str | None, solver: str | None, budget: float | None, error: float, top1: float
) -> dict[str, Any]:
    own = {"architecture": "M", "model": "m", "status": "done", "base": base, "z": kind, "solver": solver}
    return own | {"seeds": [0, 1], "budget": budget, "relative_error_held_out": error, "top1": top1}


@pytest.fixture
def content() -> dict[str, Any]:
    rows = []
    for base, none in (("representative", 0.2), ("whitened_normalised", 0.05)):
        rows.append(row(base, None, None, None, none, 50.0))
        for budget in (0.01, 0.1):
            for solver in ("closed_form", "moments", "minibatch"):
                rows.append(row(base, "low_rank", solver, budget, 0.05 if budget == 0.1 else 0.06, 70.0))
                rows.append(row(base, "diagonal", solver, budget, 0.3, 40.0))
    rows.append({**row("representative", "low_rank", "minibatch", 0.05, 0.19, 51.0), "optimizer": "sgd"})
    rows.append({**rows[0], "status": "skipped", "z": "structured_sparse"})
    return {"title": "Table 1: made up", "rows": rows}


def test_findings_compare_with_rank(content: dict[str, Any]) -> None:
    said = findings(content)
    assert len(said) == 4  # two bases, two kinds; what was not run says nothing
    assert said[0] == (
        "M, SVD on the mean image: low-rank Z in closed form, at best at 10 %: error on unseen images 0.0500 against 0.2000 "
        "with rank instead (0.25 times), top-1 70.0 against 50.0: Z helps more"
    )
    assert said[1].endswith("rank helps more")
    assert said[2].endswith("no difference in error")


def test_a_row_of_another_draw_is_not_compared(content: dict[str, Any]) -> None:
    """Its error, the least of all, may be the draw's."""
    lucky = {**row("representative", "low_rank", "closed_form", 0.025, 0.001, 99.0), "seeds": [1]}
    with_lucky = {**content, "rows": [lucky, *content["rows"]]}
    assert findings(with_lucky) == findings(content)
    lines = [[tuple(line.get_ydata()) for line in draw(some).axes[0].get_lines()] for some in (with_lucky, content)]
    assert lines[0] == lines[1]


def test_without_the_row_of_rank_nothing_is_claimed(content: dict[str, Any]) -> None:
    rows = [row for row in content["rows"] if row["z"] is not None or row["base"] != "representative"]
    assert all("mean image" not in text for text in findings({**content, "rows": rows}))


def test_the_picture_has_every_line_and_says_what_it_shows(content: dict[str, Any]) -> None:
    figure = draw(content)
    panels = figure.axes
    assert len(panels) == 2 * len(BASES)
    assert [panel.get_ylabel() for panel in panels] == ["relative error on unseen images", "", "top-1, %", ""]
    assert panels[2].get_xlabel() == "Z's budget, % of a layer's weights"
    lines = [line for line in panels[0].get_lines() if len(line.get_xdata()) and line.get_marker() != "None"]
    assert len(lines) == 2 * 3 + 1  # two kinds, three solvers; and plain gradient descent, a point of its own
    assert [list(line.get_ydata()) for line in lines if len(line.get_ydata()) == 1] == [[0.19]]
    assert list(lines[0].get_xdata()) == [1, 10]
    assert list(lines[0].get_ydata()) == [0.06, 0.05]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(LABELS.values()) < set(texts)
    assert "no Z: all of it rank" in texts


def test_nothing_measured_is_said() -> None:
    assert "nothing measured" in draw({"title": "T", "rows": []}).get_suptitle()
