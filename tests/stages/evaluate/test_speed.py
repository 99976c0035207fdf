"""What is counted is what Appendix A says; what is timed is taken in turns, and a ratio is one of a round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrank_vit.stages.evaluate import speed as benchmark
from lowrank_vit.stages.evaluate.speed import quartiles, seconds_in_turns


def test_models_take_turns_and_a_ratio_is_one_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down by half in every round: the ratio stays, and each model runs in each round."""
    now, order = [0.0], []

    def model(name: str, cost: float) -> benchmark.Run:
        def run(data: Tensor) -> Tensor:
            order.append(name)
            now[0] += cost * 1.5 ** (len(order) // 6)
            return data

        return run

    monkeypatch.setitem(benchmark.CLOCKS, "wall", lambda: now[0])
    found = seconds_in_turns({"dense": model("dense", 3.0), "small": model("small", 1.5)}, torch.zeros(1), 0.0)
    assert [len(times) for times in found.values()] == [5, 5]
    assert order[8:14] == ["dense"] * 3 + ["small"] * 3  # of each three the last one counts
    ratios = [one / other for one, other in zip(found["dense"], found["small"], strict=True)]
    assert quartiles(ratios)[1] == pytest.approx(2, rel=0.5)
    assert found["dense"][-1] > 3 * found["dense"][0]
