"""Round every layer to a number of bits of its own; what has none is stored in float16."""

import copy
from collections.abc import Mapping
from dataclasses import asdict

from torch import nn

from lowrank_vit.modules.counting import stored_bytes
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.report import Quantization, plain
from lowrank_vit.stages.quantize import QUANTIZERS, Quantizer
from lowrank_vit.stages.quantize.inputs import Observe
from lowrank_vit.stages.quantize.weights import quantize_linear, round_to_half


class MixedQuantization(Quantization):
    """Report a quantisation whose ``bits`` are the mean over all rounded weights; ``layer_bits``: of each layer."""

    mean_bits: float
    layer_bits: dict[str, int]


def quantize_each(
    model: nn.Module, bits: Mapping[str, int], *, quantizer: Quantizer, observe: Observe | None = None
) -> tuple[nn.Module, MixedQuantization]:
    """Make a copy whose named ``nn.Linear`` layers are rounded, each to its own bits (2 to 8), and its report's entry.

    ``observe``: yields the moments of layers' inputs, group by group, for a quantizer that needs them; the layers of a
    group are replaced before the next one. Every other floating value is rounded to float16, as the file has it.
    Raises ``InputError`` for other bits, and for values that cannot be stored.
    """
    quantized = copy.deepcopy(model).eval()
    layers = {name: quantized.get_submodule(name) for name in bits}
    groups = [dict.fromkeys(bits)] if observe is None else observe(quantized, list(bits))
    lost = total = 0.0
    for group in groups:
        for name, inputs in group.items():
            linear = layers[name]
            assert isinstance(linear, nn.Linear)
            small = quantize_linear(linear, bits[name], name, quantizer, inputs)
            weight = linear.weight.detach().double()
            lost += float((small.weight.double() - weight).square().sum())
            total += float(weight.square().sum())
            replace_module(quantized, name, small)
    round_to_half(quantized)
    return quantized, _entry(bits, layers, quantized, quantizer, (lost / total) ** 0.5 if total else 0.0)


def _entry(
    bits: Mapping[str, int], layers: Mapping[str, nn.Module], model: nn.Module, quantizer: Quantizer, error: float
) -> MixedQuantization:
    weights = {name: layer.weight.numel() for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    mean = sum(count * bits[name] for name, count in weights.items()) / max(1, sum(weights.values()))
    return {
        "bits": round(mean),
        "mean_bits": mean,
        "layers": len(bits),
        "layer_bits": dict(bits),
        "relative_weight_error": error,
        "method": QUANTIZERS.name_of(quantizer) or type(quantizer).__name__,
        "hyperparameters": plain(asdict(quantizer)),
        **stored_bytes(model),  # type: ignore[typeddict-item]  # its names are those of the schema
    }
