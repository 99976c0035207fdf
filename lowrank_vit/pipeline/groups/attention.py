"""The units of an attention module: directions of its heads' logits, and of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.modules.fold import fold_attention
from lowrank_vit.pipeline.groups import GROUPS, Ranks, Settings
from lowrank_vit.pipeline.groups.modules import (
    KnownModule,
    ModuleCut,
    ModuleGroup,
    OutputApproximation,
    unit_name,
    whole_modules,
)
from lowrank_vit.records.factors import InputSubset, Logits
from lowrank_vit.records.layers import QUERY_KEY, VALUE, AttentionSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import ATTENTIONS, AttentionDecomposition


@GROUPS.register("attention")
@dataclass(frozen=True)
class AttentionGroup(ModuleGroup):
    """One attention module, with the units ``query_key`` and ``value``."""

    site: AttentionSite
    method: AttentionDecomposition

    methods: ClassVar[Registry[type[AttentionDecomposition]]] = ATTENTIONS

    @classmethod
    def find(
        cls, model: nn.Module, method: AttentionDecomposition, settings: Settings, sites: str
    ) -> list[AttentionGroup]:
        """Find the attention modules of all blocks."""
        modules = whole_modules(model, settings)
        return [cls(site, method, settings) for site in modules if isinstance(site, AttentionSite)]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics of both layers that the method reads."""
        return {site.name: names for site, names in zip(self.linears, self.method.needs, strict=True)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, InputSubset | Logits]:
        """Decompose logits and values."""
        site = self.site
        logits = self.method.logits(site, *dense_linear(model, site.qkv), moments[site.qkv.name])
        values = self.method.values(site, dense_linear(model, site.proj)[0], moments[site.proj.name])
        return {unit_name(site, QUERY_KEY): logits, unit_name(site, VALUE): values}

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller attention module at the sizes of both units."""
        site, model = self.site, known.model
        logits, values = (known.parts[unit_name(site, unit)] for unit in (QUERY_KEY, VALUE))
        assert isinstance(logits, Logits)
        assert isinstance(values, InputSubset)
        assert values.basis is not None
        chosen = values.units.kept(ranks[unit_name(site, VALUE)])
        rows, approximation = refitted(values, chosen)
        weight, bias = dense_linear(model, site.proj)
        bias = bias + values.mean @ (weight - approximation)
        dense = family_of(model).attention_weights(model, site)
        kept = OutputApproximation(torch.block_diag(*values.basis)[:, chosen], dense.bias[-len(weight) :])
        directions, pair = logits.units.kept(ranks[unit_name(site, QUERY_KEY)]), (logits.query, logits.key)
        return ModuleCut(fold_attention(site, dense, pair, directions, values.basis, chosen, rows, bias), kept)
