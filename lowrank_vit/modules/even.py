"""The same function with widths that a GPU computes fast: multiples of 8, heads of one width, one product for q, k and v.

A GPU multiplies matrices of odd sizes several times slower than larger ones whose rows begin at multiples of 16 bytes, and
starting a kernel takes longer than what a small one computes. The zeros are in the weights, put there once.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lowrank_vit.modules.low_rank_attention import Heads, LowRankAttention
from lowrank_vit.modules.low_rank_linear import LowRankLinear, SmallMlp
from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_linear
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.modules.surgery import replace_module

Kind = TypeVar("Kind", bound=LowRankAttention)
MULTIPLE = 8  # of bfloat16 values: 16 bytes


def plain(model: nn.Module) -> None:
    """Put plain layers, with all of their weights as floats, in place of quantised and pivoted ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            bias = None if module.bias is None else module.bias.float()
            replace_module(model, name, linear_of(module.weight.float(), bias))
        elif isinstance(module, PivotedLinear):
            replace_module(model, name, as_linear(module).requires_grad_(False))


@torch.no_grad()
def even_out(model: nn.Module) -> nn.Module:
    """Change a model, for inference alone, to even widths; return it. Its quantised layers become floats."""
    plain(model)
    for name, module in list(model.named_modules()):
        if type(module) is LowRankAttention:
            packed = PackedAttention.of(module)
            if not name:
                return packed
            replace_module(model, name, packed)
        elif isinstance(module, SmallMlp) and isinstance(module.fc1, nn.Linear) and isinstance(module.fc2, nn.Linear):
            widths = [module.fc2.in_features] * module.rows
            module.fc1 = _more_outputs(module.fc1, widths)
            module.fc2 = _more_inputs(module.fc2, widths[:1])
        elif isinstance(module, LowRankLinear) and isinstance(module.down, nn.Linear):
            module.down = _more_outputs(module.down, [module.rank])
            module.up = _more_inputs(module.up, [module.rank])
    return model


class PackedAttention(LowRankAttention):
    """Compute a ``LowRankAttention`` by one product for queries, keys and values, all padded to one even width."""

    qkv: nn.Linear

    @classmethod
    def of(cls, attention: LowRankAttention) -> "PackedAttention":
        """Make the same function, with the attention's weights and biases of positions."""
        packed = hollow(cls, attention)
        query, passed, logits = attention.query, attention.value.places, attention.query_key.places
        keys, values = attention.key_value.weight.split([query.out_features, attention.proj.in_features])
        width = even(attention.value.widest)
        parts = ((query.weight, logits), (keys, logits), (values, passed))
        weight = torch.cat([padded_rows(rows, widths, width) for rows, widths in parts])
        bias = padded_rows(query.bias, logits, width)
        packed.qkv = linear_of(weight, torch.cat([bias, bias.new_zeros(2 * len(bias))]))
        packed.proj = linear_of(padded_rows(attention.proj.weight.T, passed, width).T, attention.proj.bias)
        packed.query_key = packed.value = Heads([width] * len(packed.live))
        del packed.query, packed.key_value
        return packed.eval()

    def projected(self, x: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heads' queries, of the first ``count`` tokens or of all, keys and values."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, len(self.live), -1)).permute(2, 0, 3, 1, 4)
        return queries[:, :, :count], keys, values


def hollow(kind: type[Kind], attention: LowRankAttention) -> Kind:
    """Make an attention of this kind and the same shape, with the same biases of positions and without weights."""
    with torch.device("meta"):
        made = kind(**attention.config)
    if attention.window_size is not None:
        made.relative_position_bias_table = attention.relative_position_bias_table
        made.relative_position_index = attention.relative_position_index
    return made


def even(width: int) -> int:
    """Round up to a multiple of ``MULTIPLE``, at least one."""
    return max(1, -(-width // MULTIPLE)) * MULTIPLE


def padded_rows(rows: Tensor, widths: Sequence[int], widest: int) -> Tensor:
    """Add rows of zeros to every head's, up to the widest: (sum of widths, ...) to (heads * widest, ...)."""
    parts = rows.split(list(widths))
    return torch.cat([torch.cat([part, part.new_zeros(widest - len(part), *part.shape[1:])]) for part in parts])


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Make a linear layer of this weight and bias, for inference alone."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _more_outputs(layer: nn.Linear, widths: Sequence[int]) -> nn.Linear:
    bias = None if layer.bias is None else padded_rows(layer.bias, widths, even(widths[0]))
    return linear_of(padded_rows(layer.weight, widths, even(widths[0])), bias)


def _more_inputs(layer: nn.Linear, widths: Sequence[int]) -> nn.Linear:
    return linear_of(padded_rows(layer.weight.T, widths, even(widths[0])).T, layer.bias)
