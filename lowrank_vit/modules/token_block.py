"""Blocks that hand on fewer tokens: similar ones merged, unattended ones fused, or some dropped by a learnt selector."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.low_rank_attention import LowRankAttention

MERGE, FUSE, READ = "merge", "fuse", "read"
PARTS = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")  # of a block, by timm's names
LEAST = 1e-9  # added to weights of zero


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
    tokens = _weighted(x)
    sources, targets = tokens[:, ::2], tokens[:, 1::2]
    targets = _added(targets, target.gather(1, gone), _picked(sources, gone))
    return _means(torch.cat([_picked(sources, stay), targets], 1))


def merged_by_energy(x: Tensor, keys: Tensor, count: int, prefix: int, margin: float) -> Tensor:
    """Merge ``count`` pairs of the tokens that most others resemble (PiToMe, Tran et al., NeurIPS 2024, eq. 4).

    x and keys as in ``merged``. A token's energy is the mean over all tokens of the cosine c of their keys, which counts as
    exp(c - margin) - 1 below the ``margin``. The 2 ``count`` tokens of the highest energies are taken in turn as sources
    and targets, and each source joins the target that it resembles most; all others stay as they are.
    """
    count = min(count, (x.shape[1] - prefix) // 2)
    if count <= 0:
        return x
    keys = F.normalize(keys[:, prefix:], dim=-1)
    cosines = keys @ keys.mT
    energy = torch.where(cosines >= margin, cosines, (cosines - margin).exp() - 1).mean(-1)
    order = energy.argsort(-1, descending=True)
    sources, targets, stay = (
        order[:, : 2 * count : 2],
        order[:, 1 : 2 * count : 2],
        order[:, 2 * count :].sort(-1).values,
    )
    pairs = _picked(cosines, sources).gather(2, targets[:, None].expand(-1, count, -1))
    tokens = _weighted(x[:, prefix:])
    joined = _added(_picked(tokens, targets), pairs.argmax(-1), _picked(tokens, sources))
    return torch.cat([x[:, :prefix], _means(torch.cat([_picked(tokens, stay), joined], 1))], 1)


def _weighted(x: Tensor) -> Tensor:
    """Multiply tokens, (B, T, n + 1), by their sizes, the last channel."""
    return torch.cat([x[..., :-1] * x[..., -1:], x[..., -1:]], -1)


def _means(summed: Tensor) -> Tensor:
    """Divide sums of weighted tokens, (B, T, n + 1), by their sizes."""
    return torch.cat([summed[..., :-1] / summed[..., -1:], summed[..., -1:]], -1)


def _picked(tokens: Tensor, index: Tensor) -> Tensor:
    """Take the tokens at ``index``, (B, K), of (B, T, n)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _added(tokens: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Add ``values``, (B, K, n), to the tokens at ``index``, (B, K), of (B, T, n)."""
    return tokens.scatter_add(1, index[..., None].expand(-1, -1, tokens.shape[-1]), values)


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
class TokenBlock(Replacement):
    """Run a block of attention and MLP that hands on fewer tokens; its parts have the names that timm's block gives them.

    ``rule``: ``"merge"``, pairs by the similarity of their keys, or ``"fuse"``, all but ``count`` into one, or ``"read"``,
    which computes the first ``count`` tokens alone, from all that they attend to. The sizes of merged tokens travel as one
    more channel, from the ``first`` such block to the ``last``; attention counts a token as often as it has merged ones
    (proportional attention). ``prefix``: tokens before the patches, which always stay. ``salience``: how much less similar
    a token counts that the class token attends to as to the mean one; what it attends to stays apart. ``margin``: pairs by
    energies (``merged_by_energy``) in place of similarities alone.
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
        margin: float | None = None,
    ) -> None:
        super().__init__()
        if rule not in (MERGE, FUSE, READ):
            raise ValueError(f"tokens are merged, fused or read, not {rule!r}")
        for name in PARTS:
            setattr(self, name, getattr(block, name, nn.Identity()))
        self.config = {"rule": rule, "count": count, "prefix": prefix, "first": first, "last": last}
        if salience:
            self.config["salience"] = salience  # earlier versions know none
        if margin is not None:
            self.config["margin"] = margin

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: Any) -> Self:
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

    def _fusing(self, x: Tensor) -> Tensor:
        y, queries, keys, scale = attended(self.attn, self.norm1(x), None)
        attention = (scale * queries[:, :, :1] @ keys.mT).softmax(-1).mean(1)[:, 0, 1:]
        x = fused(x + self.drop_path1(self.ls1(y)), attention, self.config["count"])
        return x + self.think(x)

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
            count, prefix, margin = self.config["count"], self.config["prefix"], self.config.get("margin")
            if margin is None:
                fewer = merged(tokens, compared, count, prefix, salience)
            else:
                fewer = merged_by_energy(tokens, compared, count, prefix, margin)
            return fewer[..., :-1], fewer[..., -1:]

        return self.drop_path1(self.ls1(y)), handed_on

    def think(self, x: Tensor) -> Tensor:
        """Return what the MLP adds."""
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


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
    return attention.proj(mixed.transpose(1, 2).flatten(2))


class HeadLinear(nn.Module):
    """Apply a linear layer of its own to each head: (B, h, T, n) to (B, h, T, d)."""

    def __init__(self, heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(heads, 1, out_features))
        nn.init.trunc_normal_(self.weight, std=in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
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
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
