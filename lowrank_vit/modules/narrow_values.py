"""The layers that replace those of values and outputs in an attention module, or all in attention pooling.

Zeros take the place of the directions that are lost, so that the module around them, whatever it does with queries and keys
(norms, rotations, cosines, biases by position), runs unchanged. The queries of a pooling are the same for all images.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.low_rank_attention import Heads, balance_rows
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.sites import PoolSite


@REPLACEMENTS.register("values")
class NarrowValues(Replacement):
    """Compute values of widths given per head, after ``others`` outputs that stay: those of queries and keys."""

    def __init__(self, in_features: int, out_features: int, others: int, value: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.others = in_features, out_features, others
        self.config = {"in_features": in_features, "out_features": out_features, "others": others}
        self.config |= {"value": list(value), "bias": bias}
        self.heads = Heads(value, (out_features - others) // len(value))
        self.linear = nn.Linear(in_features, others + sum(value), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., others + heads * width)."""
        others, values = self.linear(x).tensor_split([self.others], -1)
        return torch.cat([others, self.heads.fill(values)], -1)


@REPLACEMENTS.register("outputs")
class NarrowOutput(Replacement):
    """Compute the output of an attention whose values have fewer directions, given per head."""

    def __init__(self, in_features: int, out_features: int, value: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.config = {"in_features": in_features, "out_features": out_features, "value": list(value)}
        self.heads = Heads(value, in_features // len(value))
        self.up = nn.Linear(sum(value), out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., heads * width) to (..., d)."""
        return self.up(self.heads.pick(x))


@torch.no_grad()
def balance_values(attention: nn.Module) -> None:
    """Balance the directions of an attention module with narrow values, as ``LowRankAttention`` does; others stay."""
    layers: list[Any] = list(attention.children())
    values = [layer for layer in layers if hasattr(layer, "others")]  # of a pooling, keys
    outputs = [layer for layer in layers if isinstance(layer, NarrowOutput)]
    for before, after in zip(values, outputs, strict=True):
        factor = balance_rows(before.linear.weight[before.others :], after.up.weight.T)
        if before.linear.bias is not None:
            before.linear.bias[before.others :].mul_(factor[:, 0])


@REPLACEMENTS.register("pooled_queries")
class PooledQueries(Replacement):
    """Hold the queries themselves, in the directions, given per head, in which keys are compared with them.

    What they were once made of, the latents, is not read.
    """

    def __init__(self, in_features: int, out_features: int, latents: int, query: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.config = {
            "in_features": in_features,
            "out_features": out_features,
            "latents": latents,
            "query": list(query),
        }
        self.heads = Heads(query, out_features // len(query))
        self.weight = nn.Parameter(torch.zeros(latents, sum(query)))

    def forward(self, latents: Tensor) -> Tensor:
        """Return the queries for a batch of latents (B, L, n), (B, L, heads * width)."""
        return self.heads.fill(self.weight).expand(latents.shape[0], -1, -1)


@REPLACEMENTS.register("pooled_keys")
class PooledKeysValues(Replacement):
    """Compute keys and values of widths given per head; the output's bias holds that of the values."""

    def __init__(self, in_features: int, out_features: int, key: Sequence[int], value: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.config = {"in_features": in_features, "out_features": out_features, "key": list(key), "value": list(value)}
        self.keys, self.values = (Heads(widths, out_features // 2 // len(widths)) for widths in (key, value))
        self.others = sum(key)
        self.linear = nn.Linear(in_features, self.others + sum(value), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., 2 * heads * width)."""
        keys, values = self.linear(x).tensor_split([self.others], -1)
        return torch.cat([self.keys.fill(keys), self.values.fill(values)], -1)


def fold_pool(
    site: PoolSite,
    attention: nn.Module,
    dense: tuple[Tensor, Tensor],
    logits: tuple[Tensor, Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    output: tuple[Tensor, Tensor],
) -> nn.Module:
    """Return a copy of an attention pooling whose layers of queries, keys, values and outputs are smaller.

    ``dense``: weight (n, 2 h s) and bias (2 h s,) of keys and values. ``logits``: queries (h, L, r), directions of the keys
    (h, s, r), and indices into the h * r directions that are kept. ``values``: directions (h, s, s), and indices into
    h * s. ``output``: weight (kept values, d) and bias (d,), to which what the values' bias gives is added.
    """
    (weight, bias), inner = dense, site.proj.in_features
    (queries, keys, kept_logits), (basis, kept_values), (up, shift) = logits, values, output
    heads, value = len(queries), torch.block_diag(*basis)[:, kept_values]
    widths = [
        torch.bincount(kept // per_head, minlength=heads).tolist()
        for kept, per_head in ((kept_logits, queries.shape[-1]), (kept_values, site.head_width))
    ]
    asked = PooledQueries(site.latent_width, inner, site.latents, widths[0])
    asked.weight.data = queries.transpose(0, 1).flatten(1)[:, kept_logits].contiguous()
    told = PooledKeysValues(site.in_features, 2 * inner, *widths)
    narrow = [weight[:, :inner] @ torch.block_diag(*keys)[:, kept_logits], weight[:, inner:] @ value]
    told.linear.weight.data = torch.cat(narrow, 1).T.contiguous()
    outputs = NarrowOutput(inner, site.proj.out_features, widths[1])
    outputs.up.weight.data, outputs.up.bias.data = up.T.contiguous(), shift + bias[inner:] @ value @ up
    small = copy.deepcopy(attention)
    for name, made in (("q", asked), ("kv", told), ("proj", outputs)):
        before = next(small.get_submodule(name).parameters())
        replace_module(small, name, made.to(device=before.device, dtype=before.dtype))
    return small
