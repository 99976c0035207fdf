"""Files that compute in integers: what onnxruntime makes of them, and how far they are from the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import export_integers
from lowrank_vit.stages.export import integers
from tests.support.models import images, outputs, tiny

pytestmark = pytest.mark.slow

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
