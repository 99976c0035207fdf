"""A block before which a learnt selector drops tokens, and puts one package of them in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.token_block import FUSE, TokenBlock, attended

LEAST = 1e-9  # added to weights of zero


class HeadLinear(nn.Module):
    """Apply a linear layer of its own to each head: (B, h, T, n) to (B, h, T, d)."""

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(heads, 1, out_features))
        nn.init.trunc_normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map every head by its own weight."""
        return x @ self.weight + self.bias


class TokenSelector(nn.Module):
    """Score how much each token is worth keeping (Kong et al. 2022, "SPViT"; the equations as we read them).

    In every head a hidden layer makes features of a token, of which the second half is replaced by its mean over the tokens,
    and three layers make two scores of both halves, keep and drop. A small network weights the heads of a token by their
    means; its width is half the heads. Raises ``ValueError`` for heads that do not share the ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"{heads} heads cannot share a width of {width}")
        size = width // heads
        half, quarter, few = max(1, size // 2), max(1, size // 4), max(1, heads // 2)
        self.heads = heads
        self.scale, self.shift = nn.Parameter(torch.ones(heads, 1, size)), nn.Parameter(torch.zeros(heads, 1, size))
        self.hidden = HeadLinear(heads, size, size)
        self.score = nn.Sequential(
            *(HeadLinear(heads, size, half), nn.GELU(), HeadLinear(heads, half, quarter), nn.GELU()),
            HeadLinear(heads, quarter, 2),
        )
        self.weigh = nn.Sequential(nn.Linear(heads, few), nn.GELU(), nn.Linear(few, heads), nn.Sigmoid())

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Map tokens, (B, T, n), to probabilities of being kept and dropped, (B, T, 2).

        ``kept``, (B, T, 1): which are there, 0 or 1; None: all.
        """
        heads = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, h, T, s)
        features = F.gelu(self.hidden(F.layer_norm(heads, heads.shape[-1:]) * self.scale + self.shift))
        local, rest = features.split([features.shape[-1] // 2, features.shape[-1] - features.shape[-1] // 2], -1)
        if kept is None:
            overall = rest.mean(2, keepdim=True)
        else:
            overall = (rest * kept[:, None]).sum(2, keepdim=True) / kept[:, None].sum(2, keepdim=True)
        scores = self.score(torch.cat([local, overall.expand_as(rest)], -1)).softmax(-1)
        weights = self.weigh(heads.mean(-1).mT).mT[..., None]  # (B, h, T, 1)
        return (scores * weights).sum(1) / weights.sum(1)


def packed(x: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """Pack dropped tokens into one, (B, 1, n): their mean, weighted by ``kept``, the scores of being kept.

    x: (B, T, n); kept: (B, T, 1); dropped: (B, T, 1), 1 for those that go into it, 0 for others.
    """
    weights = kept * dropped
    return (weights.mT @ x) / weights.sum(1, keepdim=True).clamp_min(LEAST)


@REPLACEMENTS.register("selecting")
class SelectingBlock(TokenBlock):
    """Keep ``count`` patches before a block, by the scores of a ``TokenSelector``, and pack the others into one token.

    Tokens come in the order class token, patches, ``packages`` of earlier such blocks, which all stay. ``width`` is that of
    the stream. Raises ``ValueError`` as ``TokenSelector`` does.
    """

    def __init__(self, block: nn.Module, width: int, heads: int, count: int, packages: int = 0) -> None:
        super().__init__(block, FUSE, count)
        self.selector = TokenSelector(width, heads)
        self.config = {"width": width, "heads": heads, "count": count, "packages": packages}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> SelectingBlock:
        """Make a block around the parts of ``dense``, its selector still to be loaded."""
        return cls(dense, **config)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, 1 + T + packages, n) to (B, 1 + count + packages + 1, n); no more than ``count`` patches: all stay."""
        return self.after(self.selected(x))

    def selected(self, x: Tensor) -> Tensor:
        """Return the tokens that the block sees."""
        patches = x.shape[1] - 1 - self.config["packages"]
        if self.config["count"] >= patches:
            return x
        scores = self.selector(x[:, 1:])[:, :patches, :1]
        order = scores[..., 0].argsort(-1, descending=True)
        best = order[:, : self.config["count"]].sort(-1).values[..., None]
        dropped = torch.ones_like(scores).scatter(1, best, 0.0)
        kept = x[:, 1 : 1 + patches].gather(1, best.expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, :1], kept, x[:, 1 + patches :], packed(x[:, 1 : 1 + patches], scores, dropped)], 1)

    def after(self, x: Tensor) -> Tensor:
        """Apply attention, then the MLP, as the block does: (B, T, n) to (B, T, n)."""
        return masked(self, x, None)


def masked(block: Any, x: Tensor, kept: Tensor | None) -> Tensor:
    """Pass x, (B, T, n), through a block whose tokens see themselves and the kept ones: (B, T, 1), of 0 and 1.

    The slope of what is kept goes through the softmax, where a token counts as often as ``kept`` says (DynamicViT).
    """
    bias = None
    if kept is not None:
        seen = kept.mT + (1 - kept.mT) * torch.eye(x.shape[1]).to(x)  # (B, T, T)
        bias = (seen + LEAST).log()[:, None]  # masked tokens, too, keep a slope
    y = attended(block.attn, block.norm1(x), bias)[0]
    x = x + block.drop_path1(block.ls1(y))
    thought: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return thought
