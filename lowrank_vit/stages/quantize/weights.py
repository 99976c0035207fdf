"""Post-training quantisation of a model's weights: all of the same bits, or each layer of its own.

The paper's section 4.3 and appendix B, and other methods of rounding. Every linear layer in the blocks is quantised: of a
compressed layer both factors as they are stored, ``U^T`` and ``V`` with G and Y folded in. Head, patch embedding, norms,
tokens, biases and the kinds of Z that do not fold are rounded to float16, and stored as such.
"""

import copy
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict

from torch import nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS, beyond_linears, find_sites, in_blocks, tell_beyond
from lowrank_vit.architectures.origin import image_tower
from lowrank_vit.modules.counting import stored_bytes
from lowrank_vit.modules.embeddings import Patches
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.quantized_linear import QuantizedLinear, dequantize, pack
from lowrank_vit.modules.surgery import part, replace_module
from lowrank_vit.records.moments import as_float64
from lowrank_vit.records.report import Quantization, plain
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize.inputs import InputMoments, Observe
from lowrank_vit.stages.quantize.nearest import RoundToNearest

logger = logging.getLogger(__name__)
HALF = 16  # bits: nothing is quantised, everything is float16
NEAREST = RoundToNearest()


def quantize_linear(
    linear: nn.Linear,
    bits: int,
    name: str = "the layer",
    quantizer: Quantizer = NEAREST,
    inputs: InputMoments | None = None,
) -> QuantizedLinear:
    """Make the module that takes the place of ``linear``, in its type and on its device.

    With the moments of its ``inputs`` the bias, where there is one, takes up the mean of what the rounding changes, so that
    only the covariance is left for the weight to keep; otherwise the bias is copied as it is.
    """
    moment = None if inputs is None else inputs.second if linear.bias is None else inputs.centred
    device = linear.weight.device
    codes, scale, zero_point = quantizer(linear.weight, bits, name, None if moment is None else moment.to(device))
    layer = QuantizedLinear(linear.in_features, linear.out_features, bits, linear.bias is not None)
    layer.codes, layer.zero_point = pack(codes, bits), zero_point
    layer.scale = scale.to(linear.weight.dtype)
    if linear.bias is not None:
        layer.bias = linear.bias.detach().clone()
        if inputs is not None:
            lost = as_float64(linear.weight) - dequantize(codes, scale.double(), zero_point)
            layer.bias += (lost @ inputs.mean.to(device)).to(layer.bias)
    return layer


class MixedQuantization(Quantization):
    """Report a quantisation whose ``bits`` are the mean over all rounded weights; ``layer_bits``: of each layer."""

    mean_bits: float
    layer_bits: dict[str, int]


def round_to_half(model: nn.Module) -> None:
    """Round every floating value that a file holds to the nearest float16, in place; the types stay as they are.

    Raises ``InputError`` for a value that float16 cannot hold.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            half = tensor.detach().half()
            if not half.isfinite().all():
                raise InputError(f"{name} holds values that float16 cannot hold: repair or rescale the weights")
            tensor.data = half.to(tensor.dtype)


def block_linears(model: nn.Module, sites: str) -> dict[str, nn.Linear]:
    """Find the linear layers that match ``sites``, and those inside all compressed layers but the patch embedding."""
    chosen = {site.name for site in find_sites(model, sites)}
    patches = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Patches))
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear) and not name.startswith(patches):
            chosen |= {f"{name}.{factor}" for factor in ("down", "up")}
    return {name: module for name, module in model.named_modules() if name in chosen and isinstance(module, nn.Linear)}


def quantize_each(
    model: nn.Module, bits: Mapping[str, int], *, quantizer: Quantizer, observe: Observe | None = None
) -> tuple[nn.Module, MixedQuantization]:
    """Make a copy whose named ``nn.Linear`` layers are rounded, each to its own bits (2 to 8), and its report's entry.

    ``observe``: yields the moments of layers' inputs, group by group, for a quantizer that needs them; the layers of a
    group are replaced before the next one. Every other floating value is rounded to float16, as the file has it.
    Raises ``InputError`` for other bits, and for values that cannot be stored.
    """
    quantized, entry = rounded(model, bits, quantizer=quantizer, observe=observe)
    return quantized, {**entry, "mean_bits": _mean_bits(model, bits), "layer_bits": dict(bits)}


def _mean_bits(model: nn.Module, bits: Mapping[str, int]) -> float:
    """Return the mean over all rounded weights; that of float16 where there are none."""
    counts = {name: part(model, f"{name}.weight").numel() for name in bits}
    return sum(count * bits[name] for name, count in counts.items()) / sum(counts.values()) if counts else HALF


def rounded(
    model: nn.Module, bits: Mapping[str, int], *, quantizer: Quantizer, observe: Observe | None = None
) -> tuple[nn.Module, Quantization]:
    """Make the copy of ``quantize_each``, and the entry without the bits of each layer."""
    quantized = copy.deepcopy(model).eval()
    lost = total = 0.0
    for group in [dict.fromkeys(bits)] if observe is None else observe(quantized, list(bits)):
        for name, inputs in group.items():
            linear = quantized.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            small = quantize_linear(linear, bits[name], name, quantizer, inputs)
            weight = linear.weight.detach().double()
            lost += float((small.weight.double() - weight).square().sum())
            total += float(weight.square().sum())
            replace_module(quantized, name, small)
    round_to_half(quantized)
    entry: Quantization = {
        "bits": round(_mean_bits(model, bits)),
        "layers": len(bits),
        "relative_weight_error": (lost / total) ** 0.5 if total else 0.0,
        **stored_bytes(quantized),  # type: ignore[typeddict-item]  # its names are those of the schema
    }
    if bits:
        entry["method"] = QUANTIZERS.name_of(quantizer) or type(quantizer).__name__
        entry["hyperparameters"] = plain(asdict(quantizer))  # type: ignore[call-overload]
    return quantized, entry


def add_left_dense(entry: Quantization, model: nn.Module, sites: str) -> None:
    """Add to an entry, in place, the layers of a model that stay floating as they are no plain linear ones; they are told."""
    chosen = in_blocks(model) if sites == BLOCK_LINEARS else re.compile(sites).search
    beyond = {name: each for name, each in beyond_linears(model).items() if chosen(name)}
    tell_beyond(beyond)
    if tower := image_tower(model):
        logger.warning("only what sees images (%s) is quantised; the layers for texts stay in float16", tower)
    if beyond:
        entry["left_dense"] = beyond
