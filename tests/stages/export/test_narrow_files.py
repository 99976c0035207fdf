"""Files in float16 and in integers: what stays in float32, what is refused, and how far they are from the model."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import InputError, export_integers
from lowrank_vit.stages.export import half, integers
from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.formats import NARROWED, files, narrowed
from lowrank_vit.stages.export.half import beyond, export_half
from tests.support.models import images, outputs, tiny

pytestmark = pytest.mark.slow

BATCHES = [images(8), images(8, seed=2)]
FORMATS = NARROWED.names()


def loud(factor: float = 1e6) -> nn.Module:
    """A model whose first MLP computes with values that float16 does not have."""
    model = tiny()
    hidden, out = model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2
    hidden.weight.data *= factor
    hidden.bias.data *= factor
    out.weight.data /= factor
    return model


def weights(path: Path) -> Counter:
    import onnx

    return Counter(str(onnx.numpy_helper.to_array(each).dtype) for each in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_has_half_the_weights_and_does_nearly_the_same(file_format: str, tmp_path: Path) -> None:
    found = narrowed(file_format)
    paths = [tmp_path / f"{name}{found.suffix}" for name in ("half", "whole")]
    made = export_half(tiny(), paths[0], BATCHES, file_format=file_format)
    export(tiny(), paths[1], file_format)
    assert made.kept == ()
    assert 0 < made.agreement.divergence < 1e-4
    assert made.agreement.percent >= 100 * 15 / 16
    sizes = [
        files(found, path)[-1].stat().st_size for path in paths
    ]  # of weights, in their own file where there is one
    assert sizes[0] < sizes[1]
    data = images(5, seed=3)
    torch.testing.assert_close(found.run(paths[0])(data), outputs(tiny(), data), rtol=1e-2, atol=1e-2)


def test_nodes_whose_values_do_not_fit_stay_in_float32(tmp_path: Path) -> None:
    export(loud(), tmp_path / "whole.onnx", "onnx")
    kept = beyond(tmp_path / "whole.onnx", BATCHES)
    assert 0 < len(kept) < 10
    made = export_half(loud(), tmp_path / "half.onnx", BATCHES)
    assert list(made.kept) == kept
    assert made.agreement.divergence < 1e-4
    found = weights(tmp_path / "half.onnx")
    assert found["float16"] > found["float32"] > 0


def test_a_file_that_overflows_is_refused_with_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "beyond", lambda exact, batches: [])
    with pytest.raises(InputError, match=r"diverge by (nan|\d\S*) from .* \d+\.\d % of 16 images keep their class"):
        export_half(loud(), tmp_path / "half.onnx", BATCHES)
    assert not list(tmp_path.iterdir())


def test_limits_of_norms_and_of_a_softmax(tmp_path: Path) -> None:
    """By hand: 100 is within a norm's limit, 200 is not, as 200^2 is above a quarter of 65504; logits end at 64."""
    import onnx
    from onnx import TensorProto, helper

    def one(op: str, *constants: np.ndarray) -> Path:
        initial = [onnx.numpy_helper.from_array(value, f"c{index}") for index, value in enumerate(constants)]
        node = helper.make_node(op, ["images", *(each.name for each in initial)], ["logits"], name=op)
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("images", "logits")]
        graph = helper.make_graph([node], "one", ends[:1], ends[1:], initial)
        path = tmp_path / f"{op}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path

    def kept(path: Path, value: float) -> bool:
        return beyond(path, [torch.tensor([[value, 1.0, 2.0, 3.0]])]) == [path.stem]

    norm = one("LayerNormalization", np.ones(4, np.float32), np.zeros(4, np.float32))
    assert [kept(norm, value) for value in (100.0, -200.0)] == [False, True]
    assert [kept(one("Softmax"), value) for value in (60.0, -70.0)] == [False, True]
    assert [kept(one("Relu"), value) for value in (16000.0, 17000.0)] == [False, True]


def test_bad_requests_leave_nothing_behind(tmp_path: Path) -> None:
    for batches, file_format, said in (
        ([], "onnx", "there are none"),
        (BATCHES, "torch-export", "choose from onnx, openvino"),
    ):
        with pytest.raises(InputError, match=said):
            export_half(tiny(), tmp_path / "half.onnx", batches, file_format=file_format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("bits", "share"), [(8, 0.04), (4, 0.2)])
def test_the_file_does_nearly_what_the_model_does(bits: int, share: float, tmp_path: Path) -> None:
    model, path, data = tiny(), tmp_path / "small.onnx", images(5, seed=3)
    made = export_integers(model, path, bits, BATCHES)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    expected, found = outputs(model, data), torch.from_numpy(session.run(None, {"images": data.numpy()})[0])
    assert 0 < float((found - expected).norm()) < share * float(expected.norm())
    assert made.rounded + len(made.kept) == 10  # four layers of two blocks, the patch embedding and the classifier
    properties = session.get_modelmeta().custom_metadata_map
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
