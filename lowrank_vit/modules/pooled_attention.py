"""The layers that replace those of attention pooling, whose queries are the same for all images.

Zeros take the place of the directions that keys and values have lost, so that the module around them runs unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.low_rank_attention import Heads
from lowrank_vit.modules.narrow_values import NarrowOutput
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.sites import PoolSite


@REPLACEMENTS.register("pooled_queries")
class PooledQueries(nn.Module):
    """Hold the queries themselves, in the directions, given per head, in which keys are compared with them.

    What they were once made of, the latents, is not read.
    """

    def __init__(self, in_features: int, out_features: int, latents: int, query: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.heads = Heads(query, out_features // len(query))
        self.weight = nn.Parameter(torch.zeros(latents, sum(query)))

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        shape = {"in_features": self.in_features, "out_features": self.out_features, "latents": len(self.weight)}
        return {**shape, "query": self.heads.widths}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> PooledQueries:
        """Make a layer of this shape."""
        return cls(**config)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the queries for a batch of latents (B, L, n), (B, L, heads * width)."""
        return self.heads.fill(self.weight).expand(latents.shape[0], -1, -1)


@REPLACEMENTS.register("pooled_keys")
class PooledKeysValues(nn.Module):
    """Compute keys and values of widths given per head; the output's bias holds that of the values."""

    def __init__(self, in_features: int, out_features: int, key: Sequence[int], value: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.keys, self.values = (Heads(widths, out_features // 2 // len(widths)) for widths in (key, value))
        self.others = sum(key)
        self.linear = nn.Linear(in_features, self.others + sum(value), bias=False)

    @property
    def config(self) -> dict[str, Any]:
        """Return the arguments that make an empty layer of this shape."""
        shape = {"in_features": self.in_features, "out_features": self.out_features}
        return {**shape, "key": self.keys.widths, "value": self.values.widths}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> PooledKeysValues:
        """Make a layer of this shape."""
        return cls(**config)

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
