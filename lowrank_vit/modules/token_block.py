"""A block that hands on fewer tokens than it is given: similar ones merged, or unattended ones fused into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.low_rank_attention import LowRankAttention

MERGE, FUSE = "merge", "fuse"
PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")  # of a block, by timm's names


def merged(x: Tensor, keys: Tensor, count: int, prefix: int = 1) -> Tensor:
    """Merge the ``count`` most similar pairs of tokens by weighted means (ToMe, Bolya et al., ICLR 2023).

    x: (B, T, n + 1), the last channel is a token's size; keys: (B, T, s). Every second token is compared with the others by
    the cosine of its key; the ``prefix`` takes no part. Returns (B, T - count, n + 1): sizes add up.
    """
    count = min(count, (x.shape[1] - prefix) // 2)
    if count <= 0:
        return x
    keys = F.normalize(keys, dim=-1)
    scores = keys[:, ::2] @ keys[:, 1::2].mT
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

    ``rule``: ``"merge"``, pairs by the similarity of their keys, or ``"fuse"``, all but ``count`` into one. The sizes of
    merged tokens travel as one more channel, from the ``first`` such block to the ``last``; attention counts a token as
    often as it has merged ones (proportional attention). ``prefix``: tokens before the patches, which always stay.
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
        self, block: nn.Module, rule: str, count: int, prefix: int = 1, first: bool = True, last: bool = True
    ) -> None:
        super().__init__()
        if rule not in (MERGE, FUSE):
            raise ValueError(f"tokens are merged or fused, not {rule!r}")
        for name in PARTS:
            setattr(self, name, getattr(block, name, nn.Identity()))
        self.config: dict[str, Any] = {"rule": rule, "count": count, "prefix": prefix, "first": first, "last": last}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> TokenBlock:
        """Make a block around the parts of ``dense``."""
        return cls(dense, **config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, T, n) to (B, T', n); between blocks that merge, either may have the sizes as a last channel."""
        return self._merging(x) if self.config["rule"] == MERGE else self._fusing(x)

    def _merging(self, x: Tensor) -> Tensor:
        if self.config["first"]:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
        x, sizes = x[..., :-1], x[..., -1:]
        y, _, keys, _ = attended(self.attn, self.norm1(x), sizes[..., 0].log()[:, None, None])
        x = torch.cat([x + self.drop_path1(self.ls1(y)), sizes], -1)
        x = merged(x, keys.transpose(1, 2).flatten(2), self.config["count"], self.config["prefix"])
        x, sizes = self._thought(x[..., :-1]), x[..., -1:]
        return x if self.config["last"] else torch.cat([x, sizes], -1)

    def _fusing(self, x: Tensor) -> Tensor:
        y, queries, keys, scale = attended(self.attn, self.norm1(x), None)
        attention = (scale * queries[:, :, :1] @ keys.mT).softmax(-1).mean(1)[:, 0, 1:]
        return self._thought(fused(x + self.drop_path1(self.ls1(y)), attention, self.config["count"]))

    def _thought(self, x: Tensor) -> Tensor:
        thought: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return thought

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
