"""ONNX files, of modules that are ``straightened``.

Quantised weights are the floats that the codes stand for: given 8-bit weights, onnxruntime also rounds the activations to
8 bits, which moved logits by 1 % here, and ONNX has no codes for most of our bit widths. ``integers`` writes such files
when asked to.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.export.formats import EXPORTERS, METADATA, NARROWED, Run

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT = 2**31  # bytes of a protobuf
INPUT, OUTPUT = "images", "logits"
OPSET = 23  # the first one in which attention is one node, which onnxruntime computes without all steps between


@EXPORTERS.register("onnx")
@NARROWED.register("onnx")
class Onnx:
    """Write an ONNX file with its weights inside."""

    suffix: ClassVar[str] = ".onnx"
    reader: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    tolerance: ClassVar[float] = 1e-4  # float32 kernels of other programs stay a hundred times below

    def write(self, model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
        """Write the file; ``metadata`` is among its properties. Raises ``InputError`` for a model of 2 GiB or more."""
        import torch

        self._write(model, example, path, {METADATA: metadata}, ({0: torch.export.Dim("batch", min=1)},))

    def write_fixed(self, module: nn.Module, example: Tensor, path: Path) -> None:
        self._write(module, example, path, {}, None)

    def _write(self, model: nn.Module, example: Tensor, path: Path, properties: dict[str, str], shapes: Any) -> None:
        import torch

        from lowrank_vit.modules.counting import parameter_bytes
        from lowrank_vit.stages.export.straightened import straightened

        model = straightened(model, example.shape[1])
        if parameter_bytes(model) >= LIMIT:
            raise InputError(
                "the model has 2 GiB or more, which no single ONNX file holds: choose the format torch-export"
            )
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the lines of source that it comes from, with this machine's folders
        program.model.metadata_props.update(properties)
        program.save(path, external_data=False)

    def convert(self, exact: Path, path: Path) -> None:
        shutil.copyfile(exact, path)

    def halve(self, exact: Path, path: Path, kept: frozenset[str]) -> None:
        """Write weights and activations in float16, images and logits in float32."""
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(
            onnx.load(exact), keep_io_types=True, op_block_list=[], node_block_list=sorted(kept)
        )
        _join(half.graph)
        onnx.save(half, path)

    def run(self, path: Path) -> Run:
        """Load the file into onnxruntime on the CPU, with as many threads as torch."""
        return _session(path, optimized=True)

    def run_half(self, path: Path) -> Run:
        """Load the file without optimisations: products are float32's here, and each is rounded as the file says."""
        return _session(path, optimized=False)


def _join(graph: Any) -> None:
    """Let nodes in float32 read each other's values directly, which the converter rounds to float16 in between."""
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.op_type != "Cast" and name in casts and casts[name] in casts:
                node.input[index] = casts[casts[name]]
    read = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
        graph.node.remove(node)


def feeding(images: Sequence[Tensor]) -> Any:
    """Return what gives images, batches (B, C, H, W), to onnxruntime's calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        feeds = ({INPUT: batch.numpy()} for batch in images)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    return Reader()


def _session(path: Path, *, optimized: bool) -> Run:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
