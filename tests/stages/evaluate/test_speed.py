"""What is counted is what Appendix A says; what is timed is taken in turns, and a ratio is one of a round."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from lowrank_vit import compress, save
from lowrank_vit.cli import main
from lowrank_vit.stages.evaluate import speed as benchmark
from lowrank_vit.stages.evaluate.speed import quartiles, seconds_in_turns
from tests.support.commands import refused
from tests.support.models import NAMES, VIT

BYTES = 4


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


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "small"
    large = timm.create_model(
        NAMES["vit"][0], **{**VIT, "img_size": 64}
    ).eval()  # its activations exceed a page of memory
    compressed, report = compress(large, [torch.randn(4, 1, 64, 64)], "svd", 0.1)
    save(compressed, folder)
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
    main(["benchmark", str(folder), "--runtime", "torch,onnxruntime,openvino", "--batches", "3", *flags[2:], "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["mode"], row["batch"]) for row in rows] == [("eager", 3), ("onnxruntime", 3), ("openvino", 3)]
    for row in rows:
        files = [one.get("file_bytes") for one in (row["dense"], row["compressed"])]
        if row["mode"] == "eager":
            assert files == [None, None]
        else:
            assert files[0] > files[1] > BYTES * found["params"]["compressed"]
    for bad, message in (
        (["--batches", "1,x"], "cannot be read"),
        (["--modes", "x"], "unknown runtime 'x': choose from compile, onnxruntime, openvino, torch"),
        (["--runtime", "openvin"], "did you mean 'openvino'"),
        (["--device", "x"], "x"),
    ):
        assert message in refused(capsys, "benchmark", folder, *bad)
