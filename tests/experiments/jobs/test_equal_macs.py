"""Rows at equal multiply-accumulates: another budget, fewer tokens behind it, and how fast the result is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.jobs.job import Job
from experiments.jobs.run import run_job
from experiments.runner.plan import Options, make_plan
from experiments.tables.rows import Row, Table
from lowrank_vit import load
from lowrank_vit.modules.token_block import TokenBlock
from lowrank_vit.records.budgets import reduction_to
from tests.experiments.jobs.test_run import task
from tests.experiments.support.synthetic import IMAGES

ROW = Row("m/best+tome-macs-40", "Model-M", "deit_tiny_patch16_224.fb_in1k", "m_small", "X", "svd", 0.4, cost="macs")


def planned(row: Row, options: Options | None = None) -> Job:
    return make_plan(Table("table9", "Made up", "", (row,)), options or Options(), IMAGES)[0].jobs[0]


def test_the_recipe_gets_the_budget_and_the_tokens_the_rest() -> None:
    plain, shortened = planned(ROW), planned(replace(ROW, tokens="tome", before_tokens=0.25))
    assert (plain.reduction, plain.removed, plain.budget) == (0.4, 0.4, reduction_to(0.4, "macs"))
    assert (shortened.reduction, shortened.budget) == (0.25, reduction_to(0.25, "macs"))
    assert shortened.tokens == {"rule": "tome", "macs": 0.6}
    assert shortened.removed == pytest.approx(0.4)
    assert len({plain.key, shortened.key, planned(replace(ROW, cost="parameters")).key}) == 3


@pytest.mark.parametrize("recipe", [None, "svd"])
def test_a_job_with_fewer_tokens_keeps_within_its_multiply_accumulates(recipe: str | None, tmp_path: Path) -> None:
    tokens = {"rule": "tome", "macs": 0.6}
    done = task(tmp_path, recipe=recipe, epochs=0, cost="macs", tokens=tokens)
    done = replace(done, job=replace(done.job, reduction=0.2 if recipe else 0.0))
    result = run_job(done, lambda text: None)
    macs, params = result["macs"], result["params"]
    assert 0.45 * macs["dense"] < macs["compressed"] <= 0.6 * macs["dense"]
    assert (params["compressed"] < params["dense"]) == (recipe is not None)
    assert result["top1"]["before"] is None
    assert 0 < result["top1"]["after"] != result["top1"]["dense"]
    if recipe is not None:  # what was compressed is kept; tokens become fewer each time it is used
        kept = load(done.own_folder / "compressed")
        assert not any(isinstance(module, TokenBlock) for module in kept.modules())


def test_the_speed_of_a_job_is_measured_in_turns(tmp_path: Path) -> None:
    done = task(tmp_path, recipe="svd", epochs=0, timed=True)
    speed = run_job(done, lambda text: None)["speed"]
    assert set(speed) == {"threads", "device", "clock", "1", "8"}
    assert speed["clock"] == "cpu"  # jobs run beside each other
    assert all(0.05 < speed[batch] < 20 for batch in ("1", "8"))
