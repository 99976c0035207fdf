"""Budgets in any cost: what a model is counted to cost keeps within it, no better choice does; in time, too."""

import json
from ast import literal_eval
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import InputError, analyse, check_budget, compress, get_recipe, save, sweep
from lowrank_vit.compression import calibrate as statistics
from lowrank_vit.compression.prices import latency
from lowrank_vit.compression.prices.latency import SHARES
from lowrank_vit.compression.runtimes import call_in
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count, saved_bytes, tokens_per_image
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.stages.evaluate import speed as module_times
from tests.support.cases import few
from tests.support.models import ARGUMENTS, NAMES, VIT, images, model_and_images, outputs, same, tiny

PADDED = ["vit", "swin", "padded"]


@pytest.mark.parametrize("kind", PADDED)
def test_the_tokens_of_an_image_are_those_that_calibration_sees(kind: str) -> None:
    model, data = model_and_images(kind, 4)
    analysis = analyse(model, [data], "exact", device="cpu")
    tokens = tokens_per_image(model, analysis.moments, data.shape[1:])
    assert tokens == {name: layer.tokens // 4 for name, layer in analysis.moments.items()}
    by_hand = {"vit": {17}, "swin": {64, 16}, "padded": {36, 64, 9, 16}}  # 6 x 6 in windows of 4 x 4 is 8 x 8
    assert set(tokens.values()) == by_hand[kind]


def test_units_are_compared_by_what_they_describe_and_priced_by_their_tokens() -> None:
    """Not by what was found, since tensors have no truth value; a copy that sees other tokens shares that."""
    analysis = analyse(tiny(), [images(4)], "heads", device="cpu")
    for found, known in zip(analysis.units, analysis.decomposed, strict=True):
        fewer = replace(known, tokens=found.tokens)
        assert (fewer, hash(fewer)) == (found, hash(found))
        assert fewer.parts is known.parts
        assert "tensor" not in repr(known)
        for curve, less in zip(known.curves(), fewer.curves(), strict=True):
            assert curve.errors.equal(less.errors)
            assert curve.dense.parameters == less.dense.parameters
            assert less.dense.macs == 0 < curve.dense.macs


@pytest.mark.parametrize(("cost", "share"), few([("params", 0.7), ("bytes", 0.8), ("macs", 0.6), ("macs", 0.75)]))
def test_no_choice_of_sizes_within_the_budget_loses_less(cost: str, share: float) -> None:
    """All choices for four layers, each folded and counted, or saved in bytes."""
    torch.manual_seed(0)
    model = timm.create_model(NAMES["vit"][0], **{**VIT, "depth": 1}).eval()
    analysis = analyse(model, [images(16)], get_recipe("exact").but(rank_multiple=4), device="cpu")
    count = {
        "params": parameter_count,
        "macs": lambda small: multiply_accumulates(small, (1, 8, 8)),
        "bytes": lambda small: saved_bytes(small, torch.float32),
    }[cost]
    limit = share * count(model)
    choices = [[*curve.ranks, None] for curve in analysis.curves]
    losses = []
    for ranks in product(*choices):
        plan = RankPlan({curve.name: rank for curve, rank in zip(analysis.curves, ranks, strict=True)})
        if count(analysis.resized(plan)) <= limit:
            losses.append(sum(curve.error(rank) for curve, rank in zip(analysis.curves, ranks, strict=True)))
    assert 3 < len(losses) < len(list(product(*choices))) - 3
    chosen = analysis.plan({cost: share})
    assert count(analysis.resized(chosen)) <= limit
    loss = sum(curve.error(chosen.ranks[curve.name]) for curve in analysis.curves)
    assert loss == pytest.approx(min(losses)) if cost != "bytes" else loss <= sorted(losses)[2]  # the header has a size


@pytest.mark.parametrize("share", few([0.6, 0.8, 0.4], 1))
@pytest.mark.parametrize("kind", few(PADDED, 1))
@pytest.mark.parametrize("recipe", ["heads", "exact"])
def test_counted_multiply_accumulates_keep_within_the_budget(recipe: str, kind: str, share: float) -> None:
    """Stages with different numbers of tokens, windows that are padded, and heads padded to one width."""
    model, data = model_and_images(kind, 16)
    small, report = compress(model, [data], get_recipe(recipe).but(measured=0, refit=False), budget={"macs": share})
    dense, counted = (multiply_accumulates(each, data.shape[1:]) for each in (model, small))
    assert report["macs"] == {"dense": dense, "compressed": counted}
    entry = report["budget"]
    assert (entry["cost"], entry["asked"], entry["counted"]) == ("macs", f"macs={share:g}", counted)
    assert (entry["dense"], entry["limit"], entry["where"]) == (dense, int(share * dense), {})
    assert 0.95 * share * dense < counted <= share * dense
    assert entry["predicted"] == counted if recipe == "exact" else entry["predicted"] <= counted


@pytest.mark.parametrize(
    ("kind", "recipe", "dtype"),
    few([("swin", "best", torch.bfloat16), ("vit", "best", torch.float32), ("vit", "loss_aware", torch.float64)], 1),
)
def test_the_file_that_is_saved_keeps_within_its_bytes(
    kind: str, recipe: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, data = tiny(kind).to(dtype), images(16, kind)
    asked = int(0.75 * saved_bytes(model, dtype))
    recipe = get_recipe(recipe).but(measured=0)
    small, report = compress(model, [data], recipe, budget={"bytes": f"{asked}B"})
    save(small, tmp_path / "small", model_args=ARGUMENTS[kind])
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert report["weights_bytes"] == {"dense": saved_bytes(model, dtype), "compressed": size}
    assert 0.97 * asked < size <= asked
    assert report["budget"]["counted"] == size


def test_a_reduction_and_a_budget_of_parameters_are_the_same() -> None:
    model, data = tiny(), images(16)
    one, first = compress(model, [data], "exact", 0.4)
    other, second = compress(model, [data], "exact", budget="params=0.6")
    assert same(one, other)
    assert (first["budget"]["asked"], second["budget"]["asked"]) == ("reduction 0.4", "params=0.6")
    with pytest.raises(InputError, match="exclude each other"):
        compress(model, [data], "exact", 0.4, budget="params=0.6")
    named = r"`budget=0.6`: a budget names its cost, as in budget={'params': 0.6} \(what may remain\)"
    with pytest.raises(InputError, match=named):
        compress(model, [data], "exact", budget=0.6)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"no argument 'ratio': did you mean 'reduction' or 'budget'\?"):
        compress(model, [data], "exact", ratio=0.4)


@pytest.mark.parametrize("cost", ["params", "macs", "bytes"])
def test_a_budget_out_of_reach_names_the_range_before_an_image_is_seen(
    cost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "calibrate", lambda *a, **k: pytest.fail("images were gone through"))
    with pytest.raises(InputError, match=rf"budget {cost}=0.02 is out of reach: .* from 0\.\d+ to 1 \(not included\)"):
        sweep(tiny("swin"), [images(4, "swin")], "exact", [{cost: 0.7}, {cost: 0.02}])
    monkeypatch.undo()
    with pytest.raises(InputError) as refused:
        check_budget(tiny(), get_recipe("exact"), {cost: 0.02})
    least = str(refused.value).split(" from ")[1].split()[0]
    slack = 0.05 if cost == "bytes" else 0.0  # the header of the file is not in the prices
    _, report = compress(tiny(), [images(8)], "exact", budget={cost: float(least) + slack})
    if not slack:
        assert all(layer["rank"] == 1 for layer in report["layers"])


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


@pytest.mark.parametrize("slower", [1.25, 0.75, 1.09])
def test_a_plan_that_misses_is_made_again(slower: float, clock: Clock) -> None:
    """A machine on which the whole model takes another time than its modules together, however little."""
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
    assert not 0.9 * entry["limit"] < slower * asked["counted"] <= entry["limit"]  # what the first plan would cost
    assert (entry["predicted"] < asked["predicted"]) == (slower > 1)


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
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_modules_are_timed_in_the_program_that_will_run_them(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    model, data = model_and_images("vit", 16)
    analysis = analyse(model.float(), [data.float()], get_recipe("heads").but(measured=0, refit=False), runtime=runtime)
    entry = analysis.plan({"latency": 0.9}).budget
    assert entry is not None
    assert entry["where"]["mode"] == runtime
    assert entry["counted"] == round(0.85 * entry["dense"])
    [kept] = (tmp_path / "cache" / "latency").iterdir()
    assert runtime in json.loads(kept.read_text())["machine"]
    module = analysis.model.get_submodule("blocks.0.mlp")
    x = torch.randn(2, 5, 5, module.fc1.in_features)
    found = call_in(module, replace(analysis.setting, dtype="float32"), (x,), {})()
    torch.testing.assert_close(found, outputs(module, x), rtol=1e-4, atol=1e-5)
