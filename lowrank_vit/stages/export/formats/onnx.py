"""ONNX files, of modules that are ``straightened``.

Quantised weights are the floats that the codes stand for: given 8-bit weights, onnxruntime also rounds the activations to
8 bits, which moved logits by 1 % here, and ONNX has no codes for most of our bit widths. ``integers`` writes such files
when asked to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.export.formats import EXPORTERS, METADATA, Run

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT = 2**31  # bytes of a protobuf
INPUT, OUTPUT = "images", "logits"


@EXPORTERS.register("onnx")
class Onnx:
    """Write an ONNX file with its weights inside."""

    suffix: ClassVar[str] = ".onnx"
    reader: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    tolerance: ClassVar[float] = 1e-4  # float32 kernels of other programs stay a hundred times below

    def write(self, model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
        """Write the file; ``metadata`` is among its properties. Raises ``InputError`` for a model of 2 GiB or more."""
        import torch

        from lowrank_vit.modules.counting import parameter_bytes
        from lowrank_vit.stages.export.straightened import straightened

        model = straightened(model, example.shape[1])
        if parameter_bytes(model) >= LIMIT:
            raise InputError("the model has 2 GiB or more, which no single ONNX file holds: use --format torch-export")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the lines of source that it comes from, with this machine's folders
        program.model.metadata_props[METADATA] = metadata
        program.save(path, external_data=False)

    def run(self, path: Path) -> Run:
        """Load the file into onnxruntime on the CPU, with as many threads as torch."""
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
