"""A compressed model as other programs run it: an ONNX file, or one of ``torch.export``.

Both take batches of any size. ``torch.export`` keeps the packed codes of a quantised model as they are. In ONNX its weights
are the floats that the codes stand for: onnxruntime, given 8-bit weights, rounds the activations to 8 bits, too, which
moved logits by 1 % here, and ONNX has no codes of most of our widths.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.cost import input_size, parameter_bytes
from lowrank_vit.errors import InputError
from lowrank_vit.files import replacing
from lowrank_vit.layers import QuantizedLinear
from lowrank_vit.sites import replace_module

BATCHES = (1, 3)  # that the file is run on; the graph is traced at another
TRACED = 2
TOLERANCE = 1e-4  # of the largest logit; float32 kernels of other programs stay a hundred times below
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2**31  # bytes of a protobuf
INPUT, OUTPUT, METADATA = "images", "logits", "lowrank_vit"
PREPROCESSING = ("architecture", "tag", "num_classes", "input_size", "mean", "std", "interpolation", "crop_pct")

Run = Callable[[Tensor], Tensor]


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with each quantised layer as the float layer that it computes."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            linear.weight.data = layer.weight.float()
            if layer.bias is not None:
                linear.bias.data = layer.bias.float()
            replace_module(model, name, linear.requires_grad_(False))
    return model


def check_onnx() -> None:
    """Raise ``InputError`` where a package that ONNX needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'lowrank-vit[export]'")


def export_onnx(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write an ONNX file with its weights inside; ``metadata`` is among its properties.

    Raises ``InputError`` for a model above the 2 GiB that such a file can hold.
    """
    model = dequantized(model)
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
    program.model.metadata_props[METADATA] = metadata
    program.save(path, external_data=False)


def run_onnx(path: Path) -> Run:
    """The file as onnxruntime runs it on the CPU: images (B, C, H, W) to logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def export_torch(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write a file for ``torch.export.load``, also ``AOTInductor``'s input; ``metadata`` is an extra file inside it."""
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: metadata})


def run_torch(path: Path) -> Run:
    """The file as ``torch.export.load`` reads it: images (B, C, H, W) to logits."""
    with path.open("rb") as file:
        return torch.export.load(file).module()


FORMATS: dict[str, tuple[Callable[[nn.Module, Tensor, Path, str], None], Callable[[Path], Run]]] = {
    "onnx": (export_onnx, run_onnx),
    "torch-export": (export_torch, run_torch),
}


def preprocessing(model: nn.Module) -> str:
    """What a user of the file has to know of the images, as JSON: size, mean and deviation, from timm's configuration."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return json.dumps({name: config[name] for name in PREPROCESSING if name in config})


def export(
    model: nn.Module, path: Path, file_format: str, *, batches: Sequence[int] = BATCHES, tolerance: float = TOLERANCE
) -> dict[int, float]:
    """Write ``path``, run what was written, and return the largest difference of a logit at each batch size.

    ``tolerance``: what is allowed, as a share of the largest logit. The images are random ones of the model's size.
    Raises ``InputError`` for an unknown format, a model of unknown input size or on another device than the CPU, and
    where the file does not do what the model does; it is not kept then.
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
    model = copy.deepcopy(model).eval().requires_grad_(False)
    generator, differences = torch.Generator().manual_seed(0), {}
    with replacing(path) as temporary:
        write(model, torch.randn(TRACED, *size, generator=generator), temporary, preprocessing(model))
        run = read(temporary)
        for batch in batches:
            images = torch.randn(batch, *size, generator=generator)
            with torch.no_grad():
                expected, found = model(images), run(images)
            differences[batch] = float((found - expected).abs().max())
            if not differences[batch] <= tolerance * float(expected.abs().max()):
                raise InputError(
                    f"the exported model differs by {differences[batch]:.2g} at batch {batch}, where the largest logit is "
                    f"{float(expected.abs().max()):.2g}: {path} was not written; report this, with the packages' versions"
                )
    return differences
