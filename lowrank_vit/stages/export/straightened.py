"""The same function in modules that other programs run fast: plain products, and nothing that is cut, padded or put together.

A graph keeps each step as it is traced. Where torch needs all of a head's directions padded to one width, these modules
have the zeros in their weights, and queries and keys may be narrower than values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.architectures.permanent import copied
from lowrank_vit.modules.embeddings import Patches, is_plain
from lowrank_vit.modules.even import hollow, linear_of, padded_rows, plain
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.surgery import replace_module


def straightened(model: nn.Module, channels: int) -> nn.Module:
    """Copy a model in such modules; ``channels``: of an image, by which its patch embedding is known."""
    model = copied(model)
    plain(model)
    for name, module in list(model.named_modules()):
        if type(module) is LowRankAttention:
            replace_module(model, name, EvenAttention.of(module))
        elif isinstance(module, nn.Conv2d) and is_plain(module) and module.in_channels == channels:
            replace_module(model, name, Patches.of(module).requires_grad_(False))
    return model


class EvenAttention(LowRankAttention):
    """Compute a ``LowRankAttention`` with heads of one width, by zeros in the weights, and a product each for q, k and v."""

    key: nn.Linear
    values: nn.Linear

    @classmethod
    def of(cls, attention: LowRankAttention) -> "EvenAttention":
        """Make the same function, with the attention's weights and biases of positions."""
        even = hollow(cls, attention)
        keys, values = attention.key_value.weight.split([attention.query.out_features, attention.proj.in_features])
        query, logits, passed = attention.query, even.query_key.places, even.value.places
        narrow, wide = (max(1, *widths) for widths in (logits, passed))
        weight, bias = (padded_rows(each, logits, narrow) * even.scale for each in (query.weight, query.bias))
        even.query, even.key = linear_of(weight, bias), linear_of(padded_rows(keys, logits, narrow))
        even.values = linear_of(padded_rows(values, passed, wide))
        even.proj = linear_of(padded_rows(attention.proj.weight.T, passed, wide).T, attention.proj.bias)
        del even.key_value
        even.scale = 1.0
        return even.eval()

    def projected(self, x: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heads' queries, which hold the scale, of the first ``count`` tokens or all, keys and values."""
        query, key, value = (
            layer(tokens).unflatten(-1, (len(self.live), -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x[:, :count]), (self.key, x), (self.values, x))
        )
        return query, key, value

    def mixed(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the output of the heads' queries, keys and values; ``bias`` is added to the logits."""
        if bias is not None and is_causal:  # torch takes one of the two
            bias, is_causal = bias + bias.new_full((query.shape[-2], key.shape[-2]), -torch.inf).triu(1), False
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=is_causal, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).flatten(2))
