"""The steps of the pipeline for whole halves of blocks: what is collected, what is decomposed, what is chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lowrank_vit.decompose import ATTENTIONS, MLPS, AttentionDecomposition, MlpDecomposition
from lowrank_vit.errors import InputError
from lowrank_vit.halves import dense_linear
from lowrank_vit.parts import (
    HIDDEN,
    QUERY_KEY,
    VALUE,
    AttentionSite,
    Directions,
    HalfSite,
    Logits,
    MlpSite,
    Part,
    part_name,
)
from lowrank_vit.phases import shared
from lowrank_vit.progress import track
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import ErrorCurve, Moments
from lowrank_vit.steps import cubic_cost


def methods_of(recipe: Recipe) -> tuple[AttentionDecomposition, MlpDecomposition]:
    """The recipe's decompositions, with their default fields."""
    assert recipe.attention is not None
    assert recipe.mlp is not None
    attention: type[AttentionDecomposition] = ATTENTIONS.get(recipe.attention)
    mlp: type[MlpDecomposition] = MLPS.get(recipe.mlp)
    return attention(), mlp()


def needs_of(recipe: Recipe, sites: Sequence[HalfSite]) -> dict[str, frozenset[str]]:
    """The statistics of every linear layer that they are collected at."""
    attention, mlp = methods_of(recipe)
    needs: dict[str, frozenset[str]] = {}
    for site in sites:
        wanted = attention.needs if isinstance(site, AttentionSite) else mlp.needs
        needs |= {linear.name: own for linear, own in zip(site.linears, wanted, strict=True)}
    return needs


def decompose_halves(
    model: nn.Module,
    recipe: Recipe,
    sites: Sequence[HalfSite],
    moments: Mapping[str, Moments],
    progress: bool,
) -> dict[str, Part | Logits]:
    """All parts of all halves, which are shared out among the processes by cost.

    Raises ``InputError`` that names the half whose statistics cannot be used.
    """
    attention, mlp = methods_of(recipe)
    device, by_name = next(model.parameters()).device, {site.name: site for site in sites}

    def parts_of(site: HalfSite) -> dict[str, Part | Logits]:
        output = site.linears[-1]
        weight, own = dense_linear(model, output)[0], moments[output.name]
        try:
            if isinstance(site, MlpSite):
                return {part_name(site, HIDDEN): mlp(site, weight, own)}
            logits = attention.logits(site, *dense_linear(model, site.qkv), moments[site.qkv.name])
            return {part_name(site, QUERY_KEY): logits, part_name(site, VALUE): attention.values(site, weight, own)}
        except (torch.linalg.LinAlgError, ValueError) as error:
            raise InputError(f"{site.name!r} cannot be decomposed: {error}") from error

    def work(names: Sequence[str]) -> dict[str, dict[str, Part | Logits]]:
        return {name: parts_of(by_name[name]) for name in track(names, "decompose", shown=progress)}

    found = shared({site.name: cubic_cost(site.linears[-1]) for site in sites}, work, device)
    return {name: part for parts in found.values() for name, part in parts.items()}


def part_curves(sites: Sequence[HalfSite], parts: Mapping[str, Directions], multiple: int) -> list[ErrorCurve]:
    """What the allocator chooses from: one curve for every part."""
    return [
        parts[name].curve(name, costs, multiple)
        for site in sites
        for name, costs in ((part_name(site, part), costs) for part, costs in site.parts.items())
    ]
