"""Export of a compressed model for other programs: an ONNX file, or one of ``torch.export``.

Both take batches of any size. ``torch.export`` keeps the packed codes of a quantised model as they are. ONNX files hold
modules that are ``straightened``. Quantised weights are then the floats that the codes stand for: given 8-bit weights,
onnxruntime also rounds the activations to 8 bits, which moved logits by 1 % here, and ONNX has no codes for most of our bit
widths. ``integers`` writes such files when asked to.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules.counting import input_size, parameter_bytes
from lowrank_vit.modules.predicting import Predicting
from lowrank_vit.objectives.classification import classes_of
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import EXTRAS, require
from lowrank_vit.runtime.files import replacing
from lowrank_vit.stages.export.straightened import straightened

BATCHES = (1, 3)  # on which the file is checked; the graph is traced at another size
TRACED = 2
TOLERANCE = 1e-4  # of the largest logit; float32 kernels of other programs stay a hundred times below
ONNX_LIMIT = 2**31  # bytes of a protobuf
INPUT, OUTPUT, METADATA = "images", "logits", "lowrank_vit"
PREPROCESSING = ("architecture", "tag", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct")

Run = Callable[[Tensor], Tensor]


def check_onnx() -> None:
    """Raise ``InputError`` where a package that ONNX needs is not installed."""
    require("ONNX", *EXTRAS["export"])


def export_onnx(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write an ONNX file with its weights inside; ``metadata`` is among its properties.

    Raises ``InputError`` for a model above the 2 GiB that such a file can hold.
    """
    model = straightened(model, example.shape[1])
    if parameter_bytes(model) >= ONNX_LIMIT:
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


def run_onnx(path: Path) -> Run:
    """Load the file into onnxruntime on the CPU, with as many threads as torch: images (B, C, H, W) to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def export_torch(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write a file for ``torch.export.load``, and for ``AOTInductor``; ``metadata`` is an extra file inside it."""
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # as above
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: metadata})


def run_torch(path: Path) -> Run:
    """Load the file by ``torch.export.load``: images (B, C, H, W) to logits."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


FORMATS: dict[str, tuple[Callable[[nn.Module, Tensor, Path, str], None], Callable[[Path], Run]]] = {
    "onnx": (export_onnx, run_onnx),
    "torch-export": (export_torch, run_torch),
}


def preprocessing(model: nn.Module) -> str:
    """Describe the images that the model takes, as JSON: size, mean, deviation, ..., from timm's configuration."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = {"num_classes": classes_of(model)}  # timm's is that of the pretrained weights
    return json.dumps({name: {**config, **own}[name] for name in PREPROCESSING if name in config})


def export(
    model: nn.Module, path: Path, file_format: str, *, batches: Sequence[int] = BATCHES, tolerance: float = TOLERANCE
) -> dict[int, float]:
    """Write ``path``, run what was written, and return the largest difference of a logit at each batch size.

    ``tolerance``: the difference allowed, as a share of the largest logit. The images are random, of the model's size.
    Raises ``InputError`` for an unknown format, a model of unknown input size or on another device than the CPU, and
    where the file's logits differ from the model's; the file is then not kept.
    """
    if file_format not in FORMATS:
        raise InputError(f"unknown format {file_format!r}: choose from {', '.join(FORMATS)}")
    if file_format == "onnx":
        check_onnx()
    size, parameter = input_size(model), next(model.parameters())
    if size is None:
        raise InputError("the model does not say the size of its images, so it cannot be traced")
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise InputError(f"the model is {parameter.dtype} on {parameter.device}: export it as float32 on the CPU")
    write, read = FORMATS[file_format]
    described, model = preprocessing(model), Predicting(copy.deepcopy(model)).eval().requires_grad_(False)
    generator, differences = torch.Generator().manual_seed(0), {}
    with replacing(path) as temporary:
        write(model, torch.randn(TRACED, *size, generator=generator), temporary, described)
        run = read(temporary)
        for batch in batches:
            images = torch.randn(batch, *size, generator=generator)
            with torch.no_grad():
                expected, exported = model(images), run(images)
            differences[batch] = float((exported - expected).abs().max())
            if not differences[batch] <= tolerance * float(expected.abs().max()):
                raise InputError(
                    f"the exported model differs by {differences[batch]:.2g} at batch {batch}, where the largest logit is "
                    f"{float(expected.abs().max()):.2g}: {path} was not written; report this, with the packages' versions"
                )
    return differences
