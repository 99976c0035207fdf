"""Files that compute in integers: what onnxruntime makes of them, and how far they are from the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import compress, export_integers, save
from lowrank_vit.cli import main
from lowrank_vit.stages.export import integers
from tests.support.models import images, outputs, tiny

BATCHES = [images(8), images(8, seed=2)]


def run(path: Path, data: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": data.numpy()})[0])


@pytest.mark.parametrize(("bits", "share"), [(8, 0.04), (4, 0.2)])
def test_the_file_does_nearly_what_the_model_does(bits: int, share: float, tmp_path: Path) -> None:
    model, path, data = tiny(), tmp_path / "small.onnx", images(5, seed=3)
    made = export_integers(model, path, bits, BATCHES)
    expected, found = outputs(model, data), run(path, data)
    assert 0 < float((found - expected).norm()) < share * float(expected.norm())
    assert made.rounded + len(made.kept) == 10  # four layers of two blocks, the patch embedding and the classifier
    import onnxruntime

    properties = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert {"mean", "std", "input_size"} <= set(json.loads(properties["lowrank_vit"]))


def test_products_in_8_bits_have_a_scale_for_each_output_and_the_others_stay_float(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    made = export_integers(tiny(), tmp_path / "int8.onnx", 8, BATCHES, tolerated=3e-6)
    assert made.kept
    assert set(made.kept) == set(integers.sensitive(made.losses, 3e-6))
    assert sum(loss for name, loss in made.losses.items() if name not in made.kept) <= 3e-6
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    codes = {name: value for name, value in constants.items() if value.dtype == np.int8 and value.ndim == 2}
    assert len(codes) == made.rounded
    scales = {node.input[0]: constants[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert all(max(value.shape) >= scales[name].size in value.shape for name, value in codes.items())


def test_sensitive_layers_are_the_fewest_that_leave_little() -> None:
    losses = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert integers.sensitive(losses, 1.1) == []
    assert integers.sensitive(losses, 0.5) == ["a"]
    assert integers.sensitive(losses, 0.49) == ["a", "b"]
    assert integers.sensitive(losses, 0.0) == ["a", "b", "c"]


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, whole, small = tmp_path / "small", tmp_path / "float.onnx", tmp_path / "int8.onnx"
    model = timm.create_model("digits_deit_small", depth=1)
    save(compress(model, [torch.randn(12, 1, 8, 8)], reduction=0.2)[0], folder, model_args={"depth": 1})
    main(["export", str(folder), "--format", "onnx", "--out", str(whole)])
    wanted = ["export", str(folder), "--format", "onnx", "--int8"]
    main([*wanted, "--data", "digits", "--calibration-samples", "32", "--out", str(small)])
    assert "products of weights in 8 bits" in capsys.readouterr().out
    shown = ["benchmark", str(folder), "--onnx", str(whole), str(small), "--batches", "1,2", "--seconds", "0.1"]
    main([*shown, "--data", "digits", "--limit", "20", "--json"])
    first, second = json.loads(capsys.readouterr().out)
    assert (first["n"], first["file"], second["file"]) == (20, str(whole), str(small))
    assert second["bytes"] == small.stat().st_size
    assert first["times"]["1"]["speedup"] == 1
    assert set(second["times"]) == {"1", "2"}
    main(["export", "--model", "digits_deit_small", "--format", "onnx", "--out", str(tmp_path / "dense.onnx")])
    assert (tmp_path / "dense.onnx").stat().st_size > whole.stat().st_size
    for arguments, said in (
        ([*wanted[:4], "--model", "digits_deit_small"], "give either DIR or --model"),
        (wanted, "give --data"),
        ([*wanted[:3], "torch-export", "--int4", "--data", "digits"], "is for --format onnx"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(tmp_path / "other")])
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*shown[:3], str(tmp_path / "none.onnx")])
    assert "is not there" in capsys.readouterr().err
