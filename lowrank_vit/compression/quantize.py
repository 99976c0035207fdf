"""Quantise a model, with images where the method of rounding looks at the layers' inputs."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.linears import BLOCK_LINEARS
from lowrank_vit.architectures.permanent import copied
from lowrank_vit.compression.arguments import check_model
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.joint import BITS, check_joint, compress_jointly
from lowrank_vit.compression.joint.forms import outside_blocks
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.pivoted_linear import expand
from lowrank_vit.modules.quantized_linear import QuantizedLinear, check_bits
from lowrank_vit.records.budgets import Size
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import Quantization, QuantizationAddition, Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import shown_by_default
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize.inputs import input_moments
from lowrank_vit.stages.quantize.weights import HALF, add_left_dense, block_linears, quantize_each, rounded
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

    bits: 2 to 8; or 16 for a float16 file with nothing quantised, the baseline of the paper's Table 4. ``quantizer``:
    "nearest", the paper's, needs no images; "gptq" feeds the errors back and needs ``calibration``, whose labels are not
    read. ``sites``: the names of the linear layers, as for ``compress``. ``outside``: bits of the patch embedding and the
    classifier, which stay in float16 otherwise. The copy runs in the model's own type, and its values are those that
    ``save`` writes, float16 and packed codes, so a loaded one gives bitwise the same outputs.
    Pass the addition to ``save``: ``save(small, folder, {**report, **addition})``, where ``report`` is ``compress``'s or, of
    a dense model, ``dense_report(model)``; a report that is attached to the model gets it automatically.
    Raises ``InputError`` for other bits, a model that is quantised already, values that are not finite, and a
    quantizer without the images that it needs.
    """
    check_model(model, bits)
    method = QUANTIZERS.get(quantizer)() if isinstance(quantizer, str) else quantizer
    observe, images = None, None
    if method.needs and bits != HALF:
        if calibration is None:
            name = QUANTIZERS.name_of(method)
            raise InputError(f"quantizer {name!r} looks at the layers' inputs: pass images, or choose 'nearest'")
        images = Images.of(calibration)
        observe = partial(input_moments, batches=images.each(), progress=shown_by_default(progress))

    exact, wanted = _to_round(model, bits, sites, outside)
    entry: Quantization
    quantized, entry = (rounded if outside is None else quantize_each)(exact, wanted, quantizer=method, observe=observe)
    if bits != HALF:
        add_left_dense(entry, exact, sites)
    if images is not None:
        entry["calibration"] = images.record
    addition: QuantizationAddition = {"quantization": entry}
    attached = getattr(quantized, "compression_report", None)
    if attached is not None:
        quantized.compression_report = {**attached, **addition}  # type: ignore[assignment]  # as compress does
    return quantized, addition


def _to_round(model: nn.Module, bits: int, sites: str, outside: int | None) -> tuple[nn.Module, dict[str, int]]:
    """Copy a model in the form that is rounded; return the bits of each layer that is, by name."""
    for each in (bits, outside):
        if each is not None and (each != HALF or outside is not None):
            check_bits(each)
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("the model is quantised already: quantise the model that it was made from")
    exact, wanted = canonical(copied(model)), dict[str, int]()
    if outside is not None:
        PatchUnit.prepare(exact)
        wanted = dict.fromkeys(outside_blocks(exact), outside)
    if bits != HALF:
        expand(exact)  # an identity in codes costs little, and rows have one scale each
        wanted |= dict.fromkeys(block_linears(exact, sites), bits)
    return exact, wanted


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
