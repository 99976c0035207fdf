"""Rows at equal multiply-accumulates: another budget, fewer tokens behind it, and how fast the result is."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.jobs.run import run_job
from lowrank_vit import load
from lowrank_vit.modules.token_block import TokenBlock
from tests.experiments.jobs.test_run import task

pytestmark = pytest.mark.slow


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
