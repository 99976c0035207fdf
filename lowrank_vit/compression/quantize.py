"""Quantise a model, with images where the method of rounding looks at the layers' inputs."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.compression.arguments import check_model
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.joint import BITS, check_joint, compress_jointly
from lowrank_vit.compression.joint.forms import outside_blocks
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.quantized_linear import check_bits
from lowrank_vit.records.budgets import Size
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import QuantizationAddition, Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import shown_by_default
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize import weights as stage
from lowrank_vit.stages.quantize.inputs import input_moments
from lowrank_vit.units.embeddings import PatchUnit

UNCUT = "svd"  # a recipe that needs no statistics; nothing is cut by it


def quantize(
    model: nn.Module,
    bits: int,
    calibration: Batches | Images | None = None,
    *,
    quantizer: str | Quantizer = "nearest",
    sites: str = BLOCK_LINEARS,
    outside: int | None = None,
    progress: bool | None = None,
) -> tuple[nn.Module, QuantizationAddition]:
    """Make a quantised copy of a dense or compressed timm model, and what to add to its report.

    bits: 2 to 8; or 16 for a float16 file with nothing quantised. ``quantizer``: "nearest", the paper's, needs no images;
    "gptq" feeds the errors back and needs ``calibration``, whose labels are not read. ``sites``: the names of the linear
    layers, as for ``compress``. ``outside``: bits of the patch embedding and the classifier, which stay in float16
    otherwise. Pass the addition to ``save``: ``save(small, folder, {**report, **addition})``, where
    ``report`` is ``compress``'s or, of a dense model, ``dense_report(model)``; a report that is attached to the model gets
    it automatically.
    Raises ``InputError`` for other bits, a model that is quantised already, values that are not finite, and a
    quantizer without the images that it needs.
    """
    check_model(model, bits)
    method = QUANTIZERS.get(quantizer)() if isinstance(quantizer, str) else quantizer
    observe, images = None, None
    if method.needs and bits != stage.HALF:
        if calibration is None:
            name = QUANTIZERS.name_of(method)
            raise InputError(f"quantizer {name!r} looks at the layers' inputs: pass images, or choose 'nearest'")
        images = Images.of(calibration)
        observe = partial(input_moments, batches=images.each(), progress=shown_by_default(progress))

    further = None
    if outside is not None:
        for each in (bits, outside):
            check_bits(each)
        further = partial(_bits_outside, bits=outside)
    quantized, addition = stage.quantize(model, bits, sites=sites, quantizer=method, observe=observe, further=further)
    if images is not None:
        addition["quantization"]["calibration"] = images.record
    return quantized, addition


def quantize_within(
    model: nn.Module,
    calibration: Batches | Images,
    budget: Size,
    *,
    bits: Sequence[int] = BITS,
    held_out: Batches | Images | None = None,
    quantizer: str | Quantizer = "gptq",
    seed: int = 0,
) -> tuple[nn.Module, Report]:
    """Choose the bits of every layer, from ``bits``, so that the dense model fits into a budget of bytes.

    As ``compress`` with ``bits`` does, with every module at its size: of the linear layers in the blocks, the patch embedding
    and the classifier, each has bits of its own, chosen by one knapsack over measured losses. ``held_out``: images on
    which these are measured. Raises ``InputError`` for a budget that no choice meets.
    """
    check_model(model, calibration)
    check_joint(get_recipe(UNCUT), budget, bits)
    analysis = analyse(model, calibration, UNCUT, held_out=held_out, seed=seed)
    return compress_jointly(analysis, budget, bits, quantizer=quantizer, dense=True)


def _bits_outside(model: nn.Module, bits: int) -> dict[str, int]:
    """Make the patch embedding a linear layer, in place; return the bits of the layers outside of the blocks."""
    PatchUnit.prepare(model)
    return dict.fromkeys(outside_blocks(model), bits)
