"""COMCAT: low-rank products added to those of every head (Xiao et al. 2023, equation 8)."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.customize.deltas import DELTAS, Attached, Swaps, attentions, check_rank, drawn
from lowrank_vit.runtime.errors import InputError

PARTS = ("query", "key", "value", "out")


@DELTAS.register("comcat")
@dataclass(frozen=True)
class HeadProducts:
    """Add ``U_Q S_K^T`` to the logits and ``U_V S_O`` to the output of every head: rank r each, dense parts frozen.

    ``softmax([q, q'] [k, k']^T / sqrt(d)) [v | v']``: the first part passes the dense output layer with its bias, the other
    S_O. With h heads, width n and context m an attention has ``2 h r (n + m)`` more parameters: 795,648 r in all on Stable
    Diffusion 1.4. ``zero_start``: S_K and S_O begin at zero, so that nothing changes at step 0; the paper begins with all
    four drawn as ``nn.Linear`` draws them, which disturbs the model. ``layers``: ``all`` attentions, or ``cross`` alone.

    Merging widens the four layers of an attention by h r, and the plain processor of diffusers then computes the same:
    within the dense shapes it has no room, since a head's product has rank d already.
    """

    rank: int = 2
    zero_start: bool = True
    layers: str = "all"
    learning_rate: float = 2.5e-3

    trains_word: ClassVar[bool] = False

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        """Give every attention a processor with the products. Raises ``InputError`` for one that is not plain."""
        check_rank(self.rank)
        found = attentions(unet, self.layers)
        for name, attention in found.items():
            _check_plain(name, attention)
        before = {name: attention.processor for name, attention in found.items()}
        products = {name: ProductAttention(attention, self, generator) for name, attention in found.items()}
        for name, attention in found.items():
            attention.set_processor(products[name])
        swaps = Swaps()

        def merge() -> None:
            for name, attention in found.items():
                _widen(attention, products[name], swaps)
                attention.set_processor(before[name])

        def detach() -> None:
            swaps.undo()
            for name, attention in found.items():
                attention.set_processor(before[name])

        tensors = {f"{name}.{part}": getattr(products[name], part) for name in found for part in PARTS}
        return Attached(tensors, merge, detach)


def _check_plain(name: str, attention: Any) -> None:
    norms = (attention.spatial_norm, attention.group_norm, attention.norm_q, attention.norm_k)
    if any(norm is not None for norm in norms) or attention.residual_connection or attention.rescale_output_factor != 1:
        raise InputError(
            f"{name} has norms or a residual of its own, which comcat does not take: choose another method"
        )


class ProductAttention(nn.Module):
    """Act as the processor of an attention with products: query (h r, n), key and value (h r, m), out (n, h r)."""

    def __init__(self, attention: Any, method: HeadProducts, generator: torch.Generator) -> None:
        super().__init__()
        width, dense = attention.heads * method.rank, attention.to_out[0].weight
        draw = partial(drawn, generator=generator, like=dense)
        self.query = draw((width, attention.to_q.in_features))
        self.key = draw((width, attention.to_k.in_features))
        self.value = draw((width, attention.to_v.in_features))
        self.out = draw((dense.shape[0], width))
        if method.zero_start:
            nn.init.zeros_(self.key)
            nn.init.zeros_(self.out)

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from (N, L, n) to itself or to (N, M, m), in one call of the fused kernel with heads of width d + r."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], len(context))
            mask = mask.view(len(context), attn.heads, -1, mask.shape[-1])
        split = partial(_heads, heads=attn.heads)
        query = torch.cat([split(attn.to_q(hidden_states)), split(F.linear(hidden_states, self.query))], -1)
        key = torch.cat([split(attn.to_k(context)), split(F.linear(context, self.key))], -1)
        dense_value = split(attn.to_v(context))
        value = torch.cat([dense_value, split(F.linear(context, self.value))], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
        width = dense_value.shape[-1]
        dense, added = (part.transpose(1, 2).flatten(2) for part in (mixed[..., :width], mixed[..., width:]))
        return attn.to_out[1](attn.to_out[0](dense) + F.linear(added, self.out))


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """Split (N, L, h d) into (N, h, L, d)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


@torch.no_grad()
def _widen(attention: Any, products: ProductAttention, swaps: Swaps) -> None:
    """Put the products into four wider linear layers; the kernel then divides by sqrt(d + r), so the queries grow."""
    heads = attention.heads
    width = attention.to_q.out_features // heads
    grown = attention.scale * (width + len(products.query) // heads) ** 0.5
    for name, added, factor in (
        ("to_q", products.query, grown),
        ("to_k", products.key, 1.0),
        ("to_v", products.value, 1.0),
    ):
        layer = getattr(attention, name)
        rows = [part.unflatten(0, (heads, -1)) for part in (layer.weight, added)]
        bias = layer.bias
        if bias is not None:
            bias = F.pad(bias.unflatten(0, (heads, -1)), (0, len(added) // heads)).flatten() * factor
        swaps.put(attention, name, _linear(torch.cat(rows, 1).flatten(0, 1) * factor, bias))
    output = attention.to_out[0]
    columns = [part.unflatten(1, (heads, -1)) for part in (output.weight, products.out)]
    swaps.put(attention.to_out, "0", _linear(torch.cat(columns, 2).flatten(1), output.bias))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
