"""Files that compute in integers: 8 bits for weights and activations, or 4 bits for weights.

Both begin with the float file that ``export`` writes and checks. With 8 bits every product of a weight has its own scale
for each output channel, and one for its input, from the range that the calibration images show; its output stays float.
Layers that a measured divergence shows to be sensitive stay float. With 4 bits activations stay float, and every block of
32 weights has a scale of its own.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_vit.objectives import Objective, objective_for
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.export.export import Agreement, agreement, export, placed
from lowrank_vit.stages.export.formats import narrowed
from lowrank_vit.stages.export.formats.onnx import feeding

PRODUCTS = ("MatMul", "Gemm")
BLOCK = 32  # weights of a row that share a scale, with 4 bits
INT8_PRODUCTS = 4  # of MatMulNBits: activations are rounded to 8 bits within the product, which is fastest
TOLERATED = 0.01  # in the objective's unit, for a classifier nats: what all rounded layers may cost together
MEASURED = 16  # images on which a layer's rounding is measured


@dataclass(frozen=True)
class IntegerFile:
    """Describe the written file: how many products are in integers, which stay float, how far outputs are from float.

    ``losses``: the divergence by each product's rounding alone.
    """

    bits: int
    rounded: int
    kept: tuple[str, ...]
    agreement: Agreement
    losses: Mapping[str, float]

    @property
    def divergence(self) -> float:
        return self.agreement.divergence


def export_integers(
    model: nn.Module,
    path: Path,
    bits: int,
    batches: Iterable[Tensor],
    *,
    file_format: str = "onnx",
    symmetric: bool = False,
    tolerated: float = TOLERATED,
    progress: bool = False,
) -> IntegerFile:
    """Write a file that computes in integers, and measure how far its outputs are from the model's.

    bits: 8, for weights and activations, or 4, for weights alone; ``batches``: images (B, C, H, W) that ranges are
    calibrated and divergences measured on. ``tolerated``: with 8 bits, the most sensitive layers stay float until the
    others' measured divergences add up to no more. ``file_format``: onnx, or openvino with 8 bits.
    ``symmetric``: activations have no zero point, as TensorRT asks; GELU's then have half of the codes.
    Raises ``InputError`` for other bits, no images, and whatever ``export`` refuses; ``path`` is then not written.
    """
    if bits not in (4, 8):
        raise InputError(f"no integer file of {bits!r} bits: choose 4 or 8")
    images, found, onnx = list(batches), narrowed(file_format), narrowed("onnx")
    if bits == 4 and file_format != "onnx":
        raise InputError(
            f"4-bit weights need an operator of onnxruntime, which {file_format} lacks: choose onnx, or 8 bits"
        )
    if not images:
        raise InputError("ranges are calibrated on images, and there are none: pass some")
    objective = objective_for(model, Classification())
    with tempfile.TemporaryDirectory() as folder, placed(path) as written:
        exact, rounded = Path(folder) / "float.onnx", Path(folder) / "rounded.onnx"
        export(model, exact, "onnx")
        names, losses = products(exact), dict[str, float]()
        if bits == 8:
            calibrated = Calibrated(exact, images, Path(folder) / "ranges.json", symmetric)
            losses = dict(_measured(calibrated, names, objective, progress))
            kept = sensitive(losses, tolerated)
            calibrated.write(rounded, [name for name in names if name not in kept])
        else:
            kept = _write_int4(exact, rounded)
        _keep_metadata(exact, rounded)
        found.convert(rounded, written)
        far = agreement(objective, onnx.run(exact), found.run(written), images)
    return IntegerFile(bits, len(names) - len(kept), tuple(kept), far, losses)


def products(path: Path) -> list[str]:
    """List the nodes of a file that multiply by a constant weight."""
    import onnx

    graph = onnx.load(path).graph
    constants = {each.name for each in graph.initializer}
    return [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] in constants]


@dataclass(frozen=True)
class Calibrated:
    """Hold a float file, and the images that show the ranges of its activations; ``ranges``: where these are kept.

    ``symmetric``: ranges are as far below zero as above.
    """

    exact: Path
    images: Sequence[Tensor]
    ranges: Path
    symmetric: bool = False

    def write(self, path: Path, names: Sequence[str]) -> None:
        """Write the file with the products of these ``names`` in 8 bits."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with _quiet():
            quantize_static(
                self.exact,
                path,
                feeding(self.images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=list(names),
                per_channel=True,
                activation_type=QuantType.QInt8 if self.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                    "ActivationSymmetric": self.symmetric,
                },
                calibration_cache_path=self.ranges,
            )


def sensitive(losses: Mapping[str, float], tolerated: float) -> list[str]:
    """Return the names of largest losses, those without which the others lose at most ``tolerated`` together.

    >>> sensitive({"a": 0.02, "b": 0.004, "c": 0.008}, 0.01)
    ['a', 'c']
    """
    kept, left = list[str](), sum(losses.values())
    for name in sorted(losses, key=lambda name: -losses[name]):
        if left <= tolerated:
            break
        kept.append(name)
        left -= losses[name]
    return kept


def _measured(
    calibrated: Calibrated, names: Sequence[str], objective: Objective, progress: bool
) -> Iterator[tuple[str, float]]:
    images, one = [torch.cat(list(calibrated.images))[:MEASURED]], calibrated.ranges.with_name("one.onnx")
    onnx = narrowed("onnx")
    exact = onnx.run(calibrated.exact)
    for name in track(names, "measure", shown=progress):
        calibrated.write(one, [name])
        yield name, agreement(objective, exact, onnx.run(one), images).divergence


def _write_int4(exact: Path, path: Path) -> list[str]:
    """Write the file with the weights of products in 4 bits; return the products that cannot be, which stay float."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(exact), 4, BLOCK, accuracy_level=INT8_PRODUCTS)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))
    return products(path)


def _keep_metadata(exact: Path, path: Path) -> None:
    import onnx

    known, model = onnx.load(exact, load_external_data=False), onnx.load(path)
    onnx.helper.set_model_props(model, {each.key: each.value for each in known.metadata_props})
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what onnxruntime's tools log about each node, while the context lasts."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
