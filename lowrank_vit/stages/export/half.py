"""Files in float16, but for nodes whose values float16 could not hold, and what that changes of the outputs on images.

float16 ends at 65504, and near 64 its steps are 1/16. So a node stays in float32 where the images show values near the end,
a norm where it squares such values, and a softmax where its logits are large.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lowrank_vit.objectives import objective_for
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.export.export import Agreement, agreement, export, placed
from lowrank_vit.stages.export.formats import narrowed
from lowrank_vit.stages.export.formats.onnx import feeding

TOLERATED = 0.01  # in the objective's unit, for a classifier nats
LARGEST = 65504 / 4  # unseen images may show larger values than the given ones
LIMITS = {"LayerNormalization": LARGEST**0.5, "Softmax": 64.0}


@dataclass(frozen=True)
class HalfFile:
    """Describe the written file: the nodes that stay in float32, and how far its outputs are from the float32 file's."""

    kept: tuple[str, ...]
    agreement: Agreement


def export_half(
    model: nn.Module, path: Path, batches: Iterable[Tensor], *, file_format: str = "onnx", tolerated: float = TOLERATED
) -> HalfFile:
    """Write a file in float16, and compare it on images with the model's file in float32.

    ``batches``: images (B, C, H, W), which show the range of every value; ``file_format``: onnx or openvino.
    Raises ``InputError`` for no images, for whatever ``export`` refuses, and where the divergence is above ``tolerated``;
    ``path`` is then not written.
    """
    images, found = list(batches), narrowed(file_format)
    if not images:
        raise InputError("a file in float16 is compared with float32 on images, and there are none: pass some")
    with tempfile.TemporaryDirectory() as folder, placed(path) as written:
        exact = Path(folder) / "float.onnx"
        export(model, exact, "onnx")
        kept = beyond(exact, images)
        found.halve(exact, written, frozenset(kept))
        whole, half = narrowed("onnx").run(exact), found.run_half(written)
        made = HalfFile(tuple(kept), agreement(objective_for(model, Classification()), whole, half, images))
        if not made.agreement.divergence <= tolerated:
            raise InputError(
                f"in float16 the outputs diverge by {made.agreement.divergence:.2g} from those in float32, and "
                f"{made.agreement.percent:.1f} % of {sum(map(len, images))} images keep their class: {path} was not "
                f"written; keep float32, or allow more by `tolerated=` (it is {tolerated:g})"
            )
    return made


def beyond(exact: Path, images: Sequence[Tensor]) -> list[str]:
    """List the nodes of a float32 file that read or return values beyond their limit, on the images or in the weights."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(exact).graph
    largest = ranges(exact, images)
    for each in graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT:
            largest[each.name] = float(abs(numpy_helper.to_array(each)).max(initial=0))
    return [
        node.name
        for node in graph.node
        if any(largest.get(name, 0) > LIMITS.get(node.op_type, LARGEST) for name in (*node.input, *node.output))
    ]


def ranges(exact: Path, images: Sequence[Tensor]) -> dict[str, float]:
    """Return the largest magnitude of every float value that the nodes of a file return for the images, by name."""
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    with tempfile.TemporaryDirectory() as folder:
        calibrater = MinMaxCalibrater(exact, augmented_model_path=str(Path(folder) / "ranges.onnx"))
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(feeding(images))
        found = calibrater.compute_data()
    return {name: float(max(abs(end.max()) for end in data.range_value)) for name, data in found.items()}
