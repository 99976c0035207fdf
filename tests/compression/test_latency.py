"""Budgets in time, by a clock that ticks once for every multiply-accumulate: what is predicted can be counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import analyse, compress, get_recipe
from lowrank_vit.compression.prices.latency import SHARES, Grid
from lowrank_vit.modules.counting import multiply_accumulates
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.evaluate import module_times
from tests.support.models import images, model_and_images, tiny

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
