"""Quantise a model, with images where the method of rounding looks at the layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.arguments import check_model
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import QuantizationAddition
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import shown_by_default
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize import weights as stage
from lowrank_vit.stages.quantize.inputs import InputMoments, input_moments


def quantize(
    model: nn.Module,
    bits: int,
    calibration: Batches | Images | None = None,
    *,
    quantizer: str | Quantizer = "nearest",
    sites: str = BLOCK_LINEARS,
    progress: bool | None = None,
) -> tuple[nn.Module, QuantizationAddition]:
    """Make a quantised copy of a dense or compressed timm model, and what to add to its report.

    bits: 2 to 8; or 16 for a float16 file with nothing quantised. ``quantizer``: "nearest", the paper's, needs no images;
    "gptq" feeds the errors back and needs ``calibration``, whose labels are not read. ``sites``: the names of the linear
    layers, as for ``compress``. Pass the addition to ``save``: ``save(small, folder, {**report, **addition})``, where
    ``report`` is ``compress``'s or, of a dense model, ``dense_report(model)``; a report that is attached to the model gets
    it automatically.
    Raises ``InputError`` for other bits, a model that is quantised already, values that are not finite, and a
    quantizer without the images that it needs.
    """
    check_model(model, bits)
    method = QUANTIZERS.get(quantizer)() if isinstance(quantizer, str) else quantizer
    if not method.needs or bits == stage.HALF:
        return stage.quantize(model, bits, sites=sites, quantizer=method)
    if calibration is None:
        name = QUANTIZERS.name_of(method)
        raise InputError(f"quantizer {name!r} looks at the layers' inputs: pass images, or choose 'nearest'")
    images = Images.of(calibration)

    def observe(quantized: nn.Module, names: Sequence[str]) -> Iterator[dict[str, InputMoments]]:
        return input_moments(quantized, names, images.each(), shown_by_default(progress))

    quantized, addition = stage.quantize(model, bits, sites=sites, quantizer=method, observe=observe)
    addition["quantization"]["calibration"] = images.record
    return quantized, addition
