"""Files in float16: what stays in float32, what is refused, and how far they are from the model."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_vit import InputError
from lowrank_vit.stages.export import half
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
