"""A block that hands on fewer tokens than it is given: similar ones merged, unattended ones fused, unread ones left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.low_rank_attention import LowRankAttention

MERGE, FUSE, READ = "merge", "fuse", "read"
PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")  # of a block, by timm's names


def merged(x: Tensor, keys: Tensor, count: int, prefix: int = 1, salience: Tensor | None = None) -> Tensor:
    """Merge the ``count`` most similar pairs of tokens by weighted means (ToMe, Bolya et al., ICLR 2023).

    x: (B, T, n + 1), the last channel is a token's size; keys: (B, T, s). Every second token is compared with the others by
    the cosine of its key, less the larger of the pair's ``salience``, (B, T), if given; the ``prefix`` takes no part.
    Returns (B, T - count, n + 1): sizes add up.
    """
    count = min(count, (x.shape[1] - prefix) // 2)
    if count <= 0:
        return x
    keys = F.normalize(keys, dim=-1)
    scores = keys[:, ::2] @ keys[:, 1::2].mT
    if salience is not None:
        scores = scores - torch.maximum(salience[:, ::2, None], salience[:, None, 1::2])
    scores[:, : math.ceil(prefix / 2)] = -math.inf
    scores[:, :, : prefix // 2] = -math.inf
    best, target = scores.max(-1)
    order = best.argsort(-1, descending=True)
    gone, stay = order[:, :count], order[:, count:].sort(-1).values
    weighted = torch.cat([x[..., :-1] * x[..., -1:], x[..., -1:]], -1)
    sources, targets = weighted[:, ::2], weighted[:, 1::2]

    def picked(tokens: Tensor, index: Tensor) -> Tensor:
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))

    index = target.gather(1, gone)[..., None].expand(-1, -1, x.shape[-1])
    targets = targets.scatter_add(1, index, picked(sources, gone))
    summed = torch.cat([picked(sources, stay), targets], 1)
    return torch.cat([summed[..., :-1] / summed[..., -1:], summed[..., -1:]], -1)


def fused(x: Tensor, attention: Tensor, count: int) -> Tensor:
    """Keep the ``count`` tokens that the class token attends to most; fuse the others into one (EViT, Liang et al. 2022).

    x: (B, 1 + T, n), the class token first; attention: (B, T), that of the class token, by which the others are weighted.
    Returns (B, 1 + count + 1, n), or x where there is nothing to fuse.
    """
    if count >= attention.shape[1] - 1:
        return x
    order = attention.argsort(-1, descending=True)
    kept = order[:, :count].sort(-1).values[..., None].expand(-1, -1, x.shape[-1])
    rest = attention.scatter(1, order[:, :count], 0.0)
    return torch.cat([x[:, :1], x[:, 1:].gather(1, kept), rest[:, None] @ x[:, 1:]], 1)


@REPLACEMENTS.register("tokens")
class TokenBlock(nn.Module):
    """Run a block of attention and MLP that hands on fewer tokens; its parts have the names that timm's block gives them.

    ``rule``: ``"merge"``, pairs by the similarity of their keys, or ``"fuse"``, all but ``count`` into one, or ``"read"``,
    which computes the first ``count`` tokens alone, from all that they attend to. The sizes of merged tokens travel as one
    more channel, from the ``first`` such block to the ``last``; attention counts a token as often as it has merged ones
    (proportional attention). ``prefix``: tokens before the patches, which always stay. ``salience``: how much less similar
    a token counts that the class token attends to as to the mean one; what it attends to stays apart.
    """

    norm1: nn.Module
    attn: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(
        self,
        block: nn.Module,
        rule: str,
        count: int,
        prefix: int = 1,
        first: bool = True,
        last: bool = True,
        salience: float = 0.0,
    ) -> None:
        super().__init__()
        if rule not in (MERGE, FUSE, READ):
            raise ValueError(f"tokens are merged, fused or read, not {rule!r}")
        for name in PARTS:
            setattr(self, name, getattr(block, name, nn.Identity()))
        self.config: dict[str, Any] = {"rule": rule, "count": count, "prefix": prefix, "first": first, "last": last}
        if salience:
            self.config["salience"] = salience  # earlier versions know none

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> TokenBlock:
        """Make a block around the parts of ``dense``."""
        return cls(dense, **config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, T, n) to (B, T', n); between blocks that merge, either may have the sizes as a last channel."""
        if self.config["rule"] == FUSE:
            return self._fusing(x)
        x, sizes = self.entered(x)
        added, handed_on = self.attend(x, sizes)
        x, sizes = handed_on(torch.cat([x[:, : added.shape[1]] + added, sizes[:, : added.shape[1]]], -1))
        x = x + self.think(x)
        return x if self.config["last"] else torch.cat([x, sizes], -1)

    def entered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split what the block is given into tokens, (B, T, n), and their sizes, (B, T, 1)."""
        return (x, x.new_ones(*x.shape[:-1], 1)) if self.config["first"] else (x[..., :-1], x[..., -1:])

    def attend(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return what attention adds to the tokens that it computes, and the function that merges these.

        The function takes tokens with their sizes as the last channel, and returns fewer, apart.
        """
        bias = sizes[..., 0].log()[:, None, None]
        if self.config["rule"] == READ:
            y = read(self.attn, self.norm1(x), None if self.config["first"] else bias, self.config["count"])
            return self.drop_path1(self.ls1(y)), lambda tokens: (tokens[..., :-1], tokens[..., -1:])
        y, queries, keys, scale = attended(self.attn, self.norm1(x), bias)
        salience = None
        if (weight := self.config.get("salience", 0.0)) and self.config["count"]:
            salience = (scale * queries[:, :, :1] @ keys.mT + bias).softmax(-1).mean(1)[:, 0]
            salience = weight * salience / salience[:, 1:].mean(-1, keepdim=True)
        compared = keys.transpose(1, 2).flatten(2)

        def handed_on(tokens: Tensor) -> tuple[Tensor, Tensor]:
            fewer = merged(tokens, compared, self.config["count"], self.config["prefix"], salience)
            return fewer[..., :-1], fewer[..., -1:]

        return self.drop_path1(self.ls1(y)), handed_on

    def think(self, x: Tensor) -> Tensor:
        """Return what the MLP adds."""
        added: Tensor = self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return added

    def _fusing(self, x: Tensor) -> Tensor:
        y, queries, keys, scale = attended(self.attn, self.norm1(x), None)
        attention = (scale * queries[:, :, :1] @ keys.mT).softmax(-1).mean(1)[:, 0, 1:]
        x = fused(x + self.drop_path1(self.ls1(y)), attention, self.config["count"])
        return x + self.think(x)

    def extra_repr(self) -> str:
        """Return the rule for the printed module."""
        return ", ".join(f"{name}={value}" for name, value in self.config.items())


def attended(attention: Any, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Attend; return the output, the heads' queries and keys, (B, heads, T, s), and the scale of their products."""
    if isinstance(attention, LowRankAttention):
        queries, keys, values = attention.projected(x)
        return attention.mixed(queries, keys, values, bias), queries, keys, attention.scale
    queries, keys, values = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=attention.scale)
    return attention.proj(mixed.transpose(1, 2).flatten(2)), queries, keys, attention.scale


def read(attention: Any, x: Tensor, bias: Tensor | None, count: int) -> Tensor:
    """Attend from the first ``count`` tokens to all; return their outputs, (B, count, n)."""
    if isinstance(attention, LowRankAttention):
        queries, keys, values = attention.projected(x, count)
        return attention.mixed(queries, keys, values, bias)
    layer, heads = attention.qkv, attention.num_heads
    if type(layer) is nn.Linear:
        inner = layer.out_features // 3
        queries = F.linear(x[:, :count], layer.weight[:inner], None if layer.bias is None else layer.bias[:inner])
        rest = F.linear(x, layer.weight[inner:], None if layer.bias is None else layer.bias[inner:])
    else:
        queries, rest = layer(x).tensor_split([layer.out_features // 3], -1)
        queries = queries[:, :count]
    queries = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    keys, values = rest.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=attention.scale)
    outputs: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return outputs
