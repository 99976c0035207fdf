"""Budgets in time, by a clock that ticks once for every multiply-accumulate: what is predicted can be counted."""

import json
from ast import literal_eval
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import analyse, get_recipe
from lowrank_vit.compression.prices import latency
from lowrank_vit.compression.prices.latency import SHARES
from lowrank_vit.compression.runtimes import call_in
from lowrank_vit.stages.evaluate import speed as module_times
from tests.support.models import images, model_and_images, outputs, tiny

BATCH = 8


@dataclass
class Clock:
    """Takes a nanosecond for every multiply-accumulate, and ``slower`` times as long for a smaller model."""

    slower: float = 1.0
    timed: list[str] = field(default_factory=list)

    def __call__(
        self, calls: Mapping[str, Callable[[object], object]], data: object, seconds: float
    ) -> dict[str, list[float]]:
        times = {}
        for name, call in calls.items():
            self.timed.append(name)
            counter = FlopCounterMode(display=False)
            with counter:
                call(data)
            factor = self.slower if name == "small" else 1.0
            times[name] = [factor * counter.get_total_flops() / 2 * 1e-9] * 5
        return times


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module_times, "seconds_in_turns", clock)
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "cache"))
    return clock


@pytest.mark.parametrize("slower", [1.25, 0.75])
def test_a_plan_that_misses_is_made_again(slower: float, clock: Clock) -> None:
    """A machine on which the whole model takes another time than its modules together."""
    model, data = tiny(), images(16)
    analysis = analyse(model, [data], "exact", device="cpu", batch_size=BATCH)
    asked = analysis.plan({"latency": 0.6}).budget
    clock.slower = slower
    clock.timed.clear()
    entry = analysis.plan({"latency": 0.6}).budget
    assert asked is not None
    assert entry is not None
    assert 2 <= clock.timed.count("small") <= 5
    assert 0.9 * entry["limit"] < entry["counted"] <= entry["limit"]
    assert abs(slower * asked["counted"] - entry["limit"]) > 0.1 * entry["limit"]
    assert (entry["predicted"] < asked["predicted"]) == (slower > 1)


def test_a_budget_is_kept_however_near_the_first_plan_was(clock: Clock) -> None:
    clock.slower = 1.09
    analysis = analyse(tiny(), [images(16)], "exact", device="cpu", batch_size=BATCH)
    entry = analysis.plan({"latency": 0.6}).budget
    assert entry is not None
    assert clock.timed.count("small") > 1
    assert 0.9 * entry["limit"] < entry["counted"] <= entry["limit"]


def test_modules_are_timed_once_on_a_machine(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny(), images(16)

    def timed(batch_size: int) -> int:
        clock.timed.clear()
        analyse(model, [data], "exact", device="cpu", batch_size=batch_size).plan({"latency": 0.6})
        return len([name for name in clock.timed if name not in ("dense", "small")])

    shapes = 4  # of linear layers, the same in both blocks
    assert timed(2) == 1 + shapes * (1 + len(SHARES))
    assert timed(2) == 0
    assert timed(3) > 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert timed(2) > 0
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "kind"), [("onnxruntime", "swin"), ("openvino", "vit")])
def test_modules_are_timed_in_the_program_that_will_run_them(
    kind: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program computes is what the module does; the clock reads a call's name, as no program counts operations."""

    def ticks(name: str) -> float:
        if name.endswith(")"):  # the sizes of a module's units
            return sum(literal_eval(name[name.rindex("(") :]))
        return {"dense": 100.0, "small": 85.0}.get(name, 20_000.0 if name.startswith("whole") else 1000.0)

    def clock(calls: Mapping[str, Callable[[object], object]], data: object, *more: object) -> dict[str, list[float]]:
        for call in calls.values():
            call(data)
        return {name: [1e-6 * ticks(name)] for name in calls}

    monkeypatch.setattr(module_times, "seconds_in_turns", clock)
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "SHARES", (0.5, 1.0))
    model, data = model_and_images(kind, 16)
    analysis = analyse(model.float(), [data.float()], get_recipe("heads").but(measured=0, refit=False), runtime=runtime)
    entry = analysis.plan({"latency": 0.9}).budget
    assert entry is not None
    assert entry["where"]["mode"] == runtime
    assert entry["counted"] == round(0.85 * entry["dense"])
    [kept] = (tmp_path / "cache" / "latency").iterdir()
    assert runtime in json.loads(kept.read_text())["machine"]
    module = analysis.model.get_submodule("blocks.0.mlp" if kind == "vit" else "layers.0.blocks.0.mlp")
    x = torch.randn(2, 5, 5, module.fc1.in_features)
    found = call_in(module, replace(analysis.setting, dtype="float32"), (x,), {})()
    torch.testing.assert_close(found, outputs(module, x), rtol=1e-4, atol=1e-5)
