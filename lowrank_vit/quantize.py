"""Post-training quantisation of the weights: round to nearest, one scale for each output channel (equation (16)).

The paper's section 4.3 and appendix B. Every linear layer in the blocks is quantised - of a compressed layer both
factors as they are stored, ``U^T`` and ``V`` with G and Y folded in; head, patch embedding, norms, tokens, biases and the
kinds of Z that do not fold are rounded to float16, in which they are stored.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.cost import stored_bytes
from lowrank_vit.errors import InputError
from lowrank_vit.layers import LowRankLinear, QuantizedLinear, check_bits
from lowrank_vit.packing import pack
from lowrank_vit.sites import BLOCK_LINEARS, call_every_layer, find_sites, replace_module

HALF = 16  # bits: nothing is quantised, everything is float16


def quantize_tensor(weight: Tensor, bits: int, name: str = "the weight") -> tuple[Tensor, Tensor, Tensor]:
    """Codes q with ``|w - s (q - z)| <= s / 2``, row by row: round to nearest, the paper's appendix B.

    ``s = (max - min) / (2^bits - 1)``, ``z = round(-min / s)``, ``q = round(w / s) + z``. (With s and z as printed
    below equation (16), ``max / (2^bits - 1)`` and ``-min / (2^bits - 1)``, its clamp to ``[0, 2^bits - 1]`` takes nearly
    all that is negative away.) weight: (out, in), to codes uint8 (out, in), scale float16 (out,), zero_point uint8 (out,).

    The range of a row is widened to include 0: so z is a code itself, and zeros stay zeros. Only a row whose values all
    have one sign pays for it, with a larger s; a row of zeros has codes 0 and s = 1. The scale is rounded *up* to a
    float16, so that the range stays covered: at any number of bits the error of DeiT-Tiny's weights is at most 0.05 %
    above that of float32 scales, which take twice the bytes.
    Raises ``InputError``, which begins with ``name``, for values that are not finite or too large for float16.

    >>> q, s, z = quantize_tensor(torch.tensor([[-0.9, 2.1], [0.0, 1.5]]), bits=2)  # s = 3 / 3 and 1.5 / 3
    >>> q.tolist(), s.tolist(), z.tolist()
    ([[0, 3], [0, 3]], [1.0, 0.5], [1, 0])
    """
    check_bits(bits)
    if not weight.isfinite().all():
        raise InputError(
            f"{name} holds values that are not finite: nothing can be quantised to them; repair the weights"
        )
    exact, top = weight.detach().double(), 2**bits - 1
    low, high = exact.amin(1).clamp_max(0), exact.amax(1).clamp_min(0)
    scale = _float16_above((high - low) / top)
    if scale.isinf().any():
        raise InputError(f"{name} holds values too large for float16 ({float(exact.abs().max()):.3g}): rescale it")
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    step = scale.double()
    zero_point = (-low / step).round().clamp(0, top)
    codes = ((exact / step[:, None]).round() + zero_point[:, None]).clamp(0, top)
    return codes.to(torch.uint8), scale, zero_point.to(torch.uint8)


def _float16_above(values: Tensor) -> Tensor:
    """The smallest float16 that is not below each value; values: float64, not negative."""
    nearest = values.half()
    return torch.where(nearest.double() < values, (nearest.view(torch.int16) + 1).view(torch.float16), nearest)


def quantize_linear(linear: nn.Linear, bits: int, name: str = "the layer") -> QuantizedLinear:
    """The module that takes the place of ``linear``, in its type and on its device; the bias is copied as it is."""
    codes, scale, zero_point = quantize_tensor(linear.weight, bits, name)
    layer = QuantizedLinear(linear.in_features, linear.out_features, bits, linear.bias is not None)
    layer.codes, layer.zero_point = pack(codes, bits), zero_point
    layer.scale = scale.to(linear.weight.dtype)
    if linear.bias is not None:
        layer.bias = linear.bias.detach().clone()
    return layer


def _round_to_half(model: nn.Module) -> None:
    """Round every floating value that a file holds to the nearest float16, in place; the types stay as they are."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            rounded = tensor.detach().half()
            if not rounded.isfinite().all():
                raise InputError(f"{name} holds values that float16 does not: repair or rescale the weights")
            tensor.data = rounded.to(tensor.dtype)


def _linears(model: nn.Module, sites: str) -> dict[str, nn.Linear]:
    """The linear layers that match, and those inside compressed layers wherever these are."""
    chosen = {site.name for site in find_sites(model, sites)}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            chosen |= {f"{name}.{factor}" for factor in ("down", "up")}
    return {name: module for name, module in model.named_modules() if name in chosen and isinstance(module, nn.Linear)}


def quantize(model: nn.Module, bits: int, *, sites: str = BLOCK_LINEARS) -> tuple[nn.Module, dict[str, Any]]:
    """A quantised copy of a dense or compressed timm model, and what to add to its report.

    bits: 2 to 8; or 16 for a float16 file with nothing quantised, the baseline of the paper's Table 4. ``sites``: the
    names of the linear layers, as for ``compress``. The copy runs in the model's own type, its values are those that
    ``storage.save`` writes (as float16 and packed codes), so a loaded one gives bitwise the same outputs. Hand the
    addition to ``save``: ``save(small, folder, {**report, **addition})``, where ``report`` is ``compress``'s or, of a
    dense model, ``report.dense_report(model)``; a report that is attached to the model gets it by itself.
    Raises ``InputError`` for other bits, a model that is quantised already, and values that are not finite.
    """
    if bits != HALF:
        check_bits(bits)
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("the model is quantised already: quantise the one that it was made from")
    linears, quantized = _linears(model, sites), call_every_layer(copy.deepcopy(model)).eval()
    if bits != HALF:
        for name, linear in linears.items():
            replace_module(quantized, name, quantize_linear(linear, bits, name))
    _round_to_half(quantized)
    addition = {
        "quantization": {
            "bits": bits,
            "layers": 0 if bits == HALF else len(linears),
            "relative_weight_error": _weight_error(linears, quantized),
            **stored_bytes(quantized),
        }
    }
    attached = getattr(quantized, "compression_report", None)
    if attached is not None:
        quantized.compression_report = {**attached, **addition}  # type: ignore[assignment]  # as compress does
    return quantized, addition


def _weight_error(linears: dict[str, nn.Linear], quantized: nn.Module) -> float:
    """``||W^ - W||_F / ||W||_F`` over the weights of all ``linears`` together."""
    lost = total = 0.0
    for name, linear in linears.items():
        weight, layer = linear.weight.detach().double(), quantized.get_submodule(name)
        assert isinstance(layer, (nn.Linear, QuantizedLinear))
        lost += float((layer.weight.detach().double() - weight).square().sum())
        total += float(weight.square().sum())
    return (lost / total) ** 0.5 if total else 0.0
