"""Files of OpenVINO: a graph, and its weights beside it, made from an ONNX file.

Where the processor multiplies bfloat16, OpenVINO rounds to it unless it is told otherwise. Files run here in float32, as they
are written, so that they can be compared with the model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.export.formats import EXPORTERS, NARROWED, Run
from lowrank_vit.stages.export.formats.onnx import Onnx

if TYPE_CHECKING:
    from torch import Tensor, nn


@EXPORTERS.register("openvino")
@NARROWED.register("openvino")
class OpenVino:
    """Write a graph for OpenVINO, and its weights to a `.bin` file beside it."""

    suffix: ClassVar[str] = ".xml"
    beside: ClassVar[tuple[str, ...]] = (".bin",)
    reader: ClassVar[str] = "OpenVINO"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript", "openvino")
    tolerance: ClassVar[float] = 1e-4

    def write(self, model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
        """Write both files. Raises ``InputError`` for a path that OpenVINO would not take for a graph."""
        if path.suffix != self.suffix:
            raise InputError(f"OpenVINO knows its files by their suffix: call {path.name} {path.stem}{self.suffix}")
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder) / "exact.onnx"
            Onnx().write(model, example, exact, metadata)
            self.convert(exact, path)

    def write_fixed(self, module: nn.Module, example: Tensor, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder) / "exact.onnx"
            Onnx().write_fixed(module, example, exact)
            self.convert(exact, path)

    def convert(self, exact: Path, path: Path) -> None:
        self._save(exact, path, half=False)

    def halve(self, exact: Path, path: Path, kept: frozenset[str]) -> None:
        """Write the weights in float16; whether activations are rounded, too, is up to the device that runs the graph."""
        self._save(exact, path, half=True)

    def _save(self, exact: Path, path: Path, *, half: bool) -> None:
        import onnx
        import openvino

        model = openvino.Core().read_model(exact)
        for name in {**model.get_rt_info()}:
            del model.get_rt_info()[name]  # this machine's folders are among them
        for property in onnx.load(exact, load_external_data=False).metadata_props:
            model.set_rt_info(property.value, [property.key])
        openvino.save_model(model, path, compress_to_fp16=half)

    def run(self, path: Path) -> Run:
        return _compiled(path, "f32")

    def run_half(self, path: Path) -> Run:
        """Load the files on the CPU in float16; a processor that has no float16 rounds the weights alone."""
        return _compiled(path, "f16")


def _compiled(path: Path, precision: str) -> Run:
    import openvino
    import torch

    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(path, "CPU", options)
    return lambda images: torch.from_numpy(model(images.numpy())[0].copy())
