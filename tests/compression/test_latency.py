"""Budgets in time, by a clock that ticks once for every multiply-accumulate: what is predicted can be counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import InputError, analyse, compress, get_recipe
from lowrank_vit.cli.view import budget_line
from lowrank_vit.compression.prices import latency
from lowrank_vit.compression.prices.latency import SHARES, Grid
from lowrank_vit.compression.runtimes import call_in
from lowrank_vit.modules.counting import multiply_accumulates
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.evaluate import module_times, speed
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


@pytest.mark.parametrize("kind", ["vit", "swin", "padded"])
@pytest.mark.parametrize("recipe", ["exact", "best"])
def test_the_time_of_the_model_is_predicted_and_keeps_near_its_budget(recipe: str, kind: str, clock: Clock) -> None:
    """A layer's time is a line in its rank, so that prediction and model agree; padded heads differ a little."""
    model, data = model_and_images(kind, 16)
    recipe_used = get_recipe(recipe).but(measured=0, refit=False)
    small, report = compress(model, [data], recipe_used, budget={"latency": 0.6}, batch_size=BATCH)
    entry, size = report["budget"], data.shape[1:]
    assert entry["dense"] == pytest.approx(BATCH * multiply_accumulates(model, size), rel=1e-6)
    assert entry["counted"] == pytest.approx(BATCH * multiply_accumulates(small, size), rel=1e-6)
    assert entry["limit"] == int(0.6 * entry["dense"])
    assert entry["predicted"] == pytest.approx(entry["counted"], rel=0.002 if recipe == "exact" else 0.1)
    assert entry["counted"] == pytest.approx(entry["limit"], rel=0.02 if recipe == "exact" else 0.1)
    where = {"device": "cpu", "dtype": "float64", "mode": "eager", "batch": BATCH, "threads": torch.get_num_threads()}
    assert entry["where"] == where


@pytest.mark.parametrize("slower", [1.25, 0.75])
def test_a_plan_that_misses_is_made_once_more(slower: float, clock: Clock) -> None:
    """A machine on which the whole model takes another time than its modules together."""
    model, data = tiny(), images(16)
    analysis = analyse(model, [data], "exact", device="cpu", batch_size=BATCH)
    asked = analysis.plan({"latency": 0.6}).budget
    clock.slower = slower
    clock.timed.clear()
    entry = analysis.plan({"latency": 0.6}).budget
    assert asked is not None
    assert entry is not None
    assert clock.timed == ["dense", "small"] * 2
    assert (
        abs(entry["counted"] - entry["limit"]) < 0.1 * entry["limit"] < abs(slower * asked["counted"] - entry["limit"])
    )
    assert (entry["predicted"] < asked["predicted"]) == (slower > 1)


def test_a_near_miss_is_left_as_it_is(clock: Clock) -> None:
    clock.slower = 1.09
    analysis = analyse(tiny(), [images(16)], "exact", device="cpu", batch_size=BATCH)
    entry = analysis.plan({"latency": 0.6}).budget
    assert entry is not None
    assert clock.timed.count("small") == 1
    assert entry["counted"] > entry["limit"]


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


def test_the_times_of_two_units_add_up_where_both_are_reduced() -> None:
    """Together they save more than alone, as a padded pair does: by hand, for 8 directions each."""
    curves = [ErrorCurve.in_parameters(name, torch.zeros(9), 1, 9) for name in ("a", "b")]
    decomposed = SimpleNamespace(unit=SimpleNamespace(name="x"))
    grid = Grid(decomposed, curves)
    times = {(a, b): 10.0 * a + 20 * b + 30 * max(a, b) + 7 for a, b in grid.points}
    assert len(grid.points) == 3 * len(SHARES) - 2  # all full is one point
    tables = grid.tables(500.0, times, 1)
    for size in (1, 2, 4, 6, 8):
        assert tables["a"][size] + tables["b"][size] == pytest.approx(times[size, size], abs=1)
    saved = tables["a"][8] - tables["a"][4]
    assert saved == 10 * 4 + 30 * 4 / 2  # half of what the pair saves by its width
    assert tables["a"][5] == pytest.approx((tables["a"][4] + tables["a"][6]) / 2, abs=1)
    assert tables["a"][-1] == tables["b"][-1] == 250


def test_a_time_out_of_reach_names_the_range(clock: Clock) -> None:
    def refused(value: float | str, **options: object) -> str:
        with pytest.raises(InputError) as refusal:
            compress(tiny(), [images(8)], "exact", budget={"latency": value}, **options)
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    assert "budget latency=0.01 is out of reach: recipe 'exact' on these layers reaches from 0." in refused(0.01)
    line = refused("1us")
    least, most = (float(part.removesuffix("us")) for part in line.split("reaches from ")[1].split()[:3:2])
    assert 1 < least < most
    assert "device 'cuda:77' cannot be used" in refused(0.5, device="cuda:77")
    assert "batches [0]" in refused(0.5, batch_size=0)
    with pytest.raises(InputError, match="compensation Z"):
        compress(tiny(), [images(4)], "paper", budget={"latency": 0.7})


def test_compiled_models_need_a_compiler(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        compress(tiny(), [images(8)], "exact", budget={"latency": 0.7}, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "kind"), [("onnxruntime", "swin"), ("openvino", "vit")])
def test_modules_are_timed_in_the_program_that_will_run_them(
    kind: str, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program computes is what the module does; the times are those of this machine."""
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "SHARES", (0.5, 1.0))
    model, data = model_and_images(kind, 16)
    analysis = analyse(model.float(), [data.float()], get_recipe("best").but(measured=0, refit=False), runtime=runtime)
    entry = analysis.plan({"latency": 0.9}).budget
    assert entry is not None
    assert entry["where"]["mode"] == runtime
    assert entry["counted"] > 0
    [kept] = (tmp_path / "cache" / "latency").iterdir()
    assert runtime in json.loads(kept.read_text())["machine"]
    module = analysis.model.get_submodule("blocks.0.mlp" if kind == "vit" else "layers.0.blocks.0.mlp")
    x = torch.randn(2, 5, 5, module.fc1.in_features)
    found = call_in(module, replace(analysis.setting, dtype="float32"), (x,), {})()
    torch.testing.assert_close(found, outputs(module, x), rtol=1e-4, atol=1e-5)


def test_an_unknown_program_is_one_line(clock: Clock) -> None:
    with pytest.raises(InputError, match="unknown runtime 'onnx': choose from compile, onnxruntime"):
        compress(tiny(), [images(8)], "exact", budget={"latency": 0.7}, runtime="onnx")


def test_a_time_is_told_beside_its_prediction() -> None:
    where = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch": 8, "threads": 2}
    times = {"dense": 20_400_000, "limit": 12_000_000, "predicted": 11_900_000, "counted": 12_345_678}
    line = budget_line({"cost": "latency", "asked": "latency=12ms", "where": where, **times})
    assert line == (
        "latency=12ms: 12.3 ms, allowed 12 ms, dense 20.4 ms, predicted 11.9 ms (cpu, float32, eager, batch 8, 2 threads)"
    )
