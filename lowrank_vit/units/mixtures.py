"""The parts of a unit as mixtures of their sizes: parameters of the dense model, for a search that learns the shares.

What a smaller module computes is what the dense one computes with other weights: a layer with its product of factors, heads
with queries that compare less, an output layer that reads what is kept. So nothing is folded, and every family is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Gated, Mixed, MixedQueries, Mixture, first_kept
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.factors import Factors, InputSubset, Logits
from lowrank_vit.records.sites import Site

Sizes = Sequence[int | None]


def mixed_rank(model: nn.Module, site: Site, factors: Factors, mean: Tensor | None, sizes: Sizes) -> Mixture:
    """Return the mixture of a single layer's ranks, and of the bias where it takes up the ``mean`` of what is lost, (n,)."""
    layer, (u, v) = get_linear(model, site), factors.cut(len(factors.loss) - 1)
    kept = first_kept(sizes, u.shape[1]).to(u)
    mixture: Mixture = {_name(model, site, "weight"): Gated(*(each.to(layer.weight) for each in (u, v, kept)))}
    if mean is None:
        return mixture
    weight, bias = dense_linear(model, site)
    biases = bias + mean @ weight - ((mean @ u) * kept) @ v.T
    return {**mixture, _name(model, site, "bias"): Mixed(biases.to(layer.weight))}


def mixed_outputs(model: nn.Module, output: Site, subset: InputSubset, sizes: Sizes, biases: bool = True) -> Mixture:
    """Return the mixture of an output layer that is refitted on those of its inputs, or of their directions, that stay.

    ``biases``: whether the smaller module has the dense one's; ``subset.mean`` is then what the inputs have of them.
    """
    weight, bias = dense_linear(model, output)
    approximations = [refitted(subset, subset.units.kept(size))[1] for size in sizes]
    whole = bias + subset.mean @ weight if biases else torch.zeros_like(bias)
    shifts = [whole - subset.mean @ each for each in approximations]
    like = get_linear(model, output).weight
    return {
        _name(model, output, "weight"): Mixed(torch.stack([each.T for each in approximations]).to(like)),
        _name(model, output, "bias"): Mixed(torch.stack(shifts).to(like)),
    }


def mixed_logits(model: nn.Module, layer: Site, logits: Logits, sizes: Sizes, biases: bool = True) -> Mixture:
    """Return the mixture of the directions in which queries and keys are compared; ``layer`` makes queries first."""
    linear = get_linear(model, layer)
    matrices = torch.stack([_compared(logits, size) for size in sizes]).to(linear.weight)
    mixture: Mixture = {_name(model, layer, "weight"): MixedQueries(linear.weight.detach(), matrices)}
    owner = layer.name.rpartition(".")[0]
    names = [_name(model, layer, "bias"), f"{owner}.q_bias"]  # the latter: BEiT's, EVA's and Swin V2's
    of_biases = matrices if biases else torch.zeros_like(matrices)
    found = {name: each.detach() for name, each in model.named_parameters() if name in names}
    return {**mixture, **{name: MixedQueries(each, of_biases) for name, each in found.items()}}


def _compared(logits: Logits, size: int | None) -> Tensor:
    """Return B of every head, (h, s, s), with which ``q^T B k`` replaces ``q^T k``; the identity if all is kept."""
    heads, width = logits.query.shape[:2]
    if size is None:
        return torch.eye(width, dtype=logits.query.dtype, device=logits.query.device).expand(heads, -1, -1)
    kept = logits.units.kept(size)
    query, key = logits.pair(kept)
    chosen = torch.zeros(heads * width).to(query)
    chosen[kept] = 1.0
    return (query * chosen.view(heads, 1, width)) @ key.mT


def _name(model: nn.Module, site: Site, parameter: str) -> str:
    """Return the name of a layer's parameter; of a smaller layer, of the one that makes its output."""
    made = ".up" if hasattr(model.get_submodule(site.name), "up") else ""
    return f"{site.name}{made}.{parameter}"
