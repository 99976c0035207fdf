"""Table 1 in words and as a picture, from made-up rows."""

from typing import Any

import pytest

from experiments.report.ablation import findings


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
