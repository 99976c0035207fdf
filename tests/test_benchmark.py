"""What is counted is what Appendix A says; what is timed is taken in turns, and a ratio is one of a round."""

from __future__ import annotations

import doctest
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import InputError, benchmark, compress, save
from lowrank_vit.benchmark import activation_bytes, quartiles, seconds_in_turns, settings
from lowrank_vit.cli import main
from lowrank_vit.compensate import empty_module
from lowrank_vit.cost import multiply_accumulates
from lowrank_vit.layers import LowRankLinear
from tests.models import VIT, images, tiny

BYTES = 4


def macs_of(module: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("n", "k", "m", "r", "q"), [(197, 192, 576, 100, 7), (49, 768, 192, 20, 1)])
def test_appendix_a(n: int, k: int, m: int, r: int, q: int) -> None:
    """Equations (14) and (15): Z beside the factors and Z folded into them are the same products."""
    x = torch.randn(1, n, k)
    assert macs_of(nn.Linear(k, m), x) == n * k * m
    z = empty_module("low_rank", in_features=k, out_features=m, rank=q)
    assert macs_of(LowRankLinear(k, m, r, correction=z), x) == n * k * r + n * r * m + n * k * q + n * q * m
    assert macs_of(LowRankLinear(k, m, r + q), x) == n * k * (r + q) + m * n * (r + q)


def test_a_whole_model_by_hand() -> None:
    """Patches, then for each block attention's logits and mixtures and its linear layers, then the head."""
    tokens, width, hidden, patches, depth = 17, 16, 64, 16, 2
    linears = tokens * width * (3 * width + width + 2 * hidden)
    dense = patches * 4 * width + depth * (2 * tokens**2 * width + linears) + width * 10
    assert multiply_accumulates(tiny(), (1, 8, 8)) == dense
    small, report = compress(tiny(), [images(12)], "exact", 0.3)
    saved = 0
    for layer in report["layers"]:
        n, d, rank = layer["in_features"], layer["out_features"], layer["rank"]
        saved += 0 if rank is None else tokens * (n * d - rank * (n + d))
    assert saved > 0
    assert multiply_accumulates(small, (1, 8, 8)) == report["macs"]["compressed"] == dense - saved


def test_quartiles() -> None:
    assert doctest.testmod(benchmark).failed == 0
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)


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


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own count of a process's memory is Linux's")
def test_activations_are_counted_while_they_live() -> None:
    x = torch.zeros(2**20)
    for model, alive in ((lambda x: (x + 1) + 1, 2), (lambda x: (x + 1) + (x + 2), 3), (lambda x: x.relu_(), 0)):
        assert activation_bytes(model, x) == pytest.approx(alive * x.nbytes, abs=x.nbytes / 4)


def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "g++" else None)
    assert [(one.mode, one.batch) for one in settings("cpu", batches=[1, 2])] == [
        ("eager", 1),
        ("eager", 2),
        ("compiled", 1),
        ("compiled", 2),
    ]
    assert {one.dtype for one in settings("cuda")} == {"bfloat16"}
    with pytest.raises(InputError, match="unknown mode 'eagre'"):
        settings("cpu", ["eagre"])
    with pytest.raises(InputError, match=r"batches \[0\]"):
        settings("cpu", batches=[0])
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        settings("cpu")
    assert settings("cpu", ["eager"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "small"
    compressed, report = compress(tiny(), [images(12)], "best", 0.3)
    save(compressed, folder, model_args={k: v for k, v in VIT.items() if k != "num_classes"})
    flags = ["--batches", "1,3", "--seconds", "0.01", "--device", "cpu"]
    main(["benchmark", str(folder), "--modes", "eager", *flags, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"]["compressed"] == (folder / "model.safetensors").stat().st_size
    assert found["macs"] == {"dense": report["macs"]["dense"], "compressed": report["macs"]["compressed"]}
    assert found["params"]["dense"] > found["params"]["compressed"]
    assert [row["batch"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        small, ratio = row["compressed"], found["macs"]["dense"] / found["macs"]["compressed"]
        assert small["speedup"] == pytest.approx(small["share_of_mac_ratio"] * ratio)
        assert small["speedup_quartiles"][0] <= small["speedup"] <= small["speedup_quartiles"][1]
        for one in (row["dense"], small):
            assert one["images_per_second"] == pytest.approx(row["batch"] / one["seconds"])
            assert one["peak_memory_bytes"] > 0
        assert row["dense"]["peak_memory_bytes"] > BYTES * found["params"]["dense"]
    main(["benchmark", str(folder), "--modes", "eager", *flags])
    assert "speed-up" in capsys.readouterr().out
    for bad, message in (
        (["--batches", "1,x"], "cannot be read"),
        (["--modes", "x"], "unknown mode"),
        (["--device", "x"], "x"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["benchmark", str(folder), *bad])
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
