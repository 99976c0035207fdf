"""The units of an attention module: directions of its heads' logits, and of their values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear, without_value_bias
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.modules.fold import fold_attention, fold_values
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
    """One attention module, with the units ``query_key`` and ``value``, or with ``value`` alone."""

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
        """Return the statistics that the method reads, of the layers that it reads them of."""
        needs = self.method.needs[-len(self.linears) :]
        return {site.name: names for site, names in zip(self.linears, needs, strict=True)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, InputSubset | Logits]:
        """Decompose logits, unless they stay dense, and values."""
        site = self.site
        values = self.method.values(site, dense_linear(model, site.proj)[0], moments[site.proj.name])
        if site.dense_logits:
            return {unit_name(site, VALUE): values}
        logits = self.method.logits(site, *dense_linear(model, site.qkv), moments[site.qkv.name])
        return {unit_name(site, QUERY_KEY): logits, unit_name(site, VALUE): values}

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller attention module at the sizes of its units."""
        site, model = self.site, known.model
        values = known.parts[unit_name(site, VALUE)]
        assert isinstance(values, InputSubset)
        assert values.basis is not None
        chosen = values.units.kept(ranks[unit_name(site, VALUE)])
        rows, approximation = refitted(values, chosen)
        weight, bias = dense_linear(model, site.proj)
        bias = bias + values.mean @ (weight - approximation)
        before, columns = dense_linear(model, site.qkv), torch.block_diag(*values.basis)[:, chosen]
        value_bias = before[1][-len(weight) :]
        if site.dense_logits:
            attention = without_value_bias(copy.deepcopy(model.get_submodule(site.name)))
            kept = OutputApproximation(columns, torch.zeros_like(value_bias) if site.qkv.bias else value_bias)
            return ModuleCut(fold_values(site, attention, before, values.basis, chosen, rows, bias), kept)
        logits = known.parts[unit_name(site, QUERY_KEY)]
        assert isinstance(logits, Logits)
        dense = family_of(model).attention_weights(model, site)
        kept = OutputApproximation(columns, value_bias)
        # where a head passes nothing on, its queries and keys would do nothing: those of the others take their place
        alive = torch.isin(
            torch.arange(len(values.units.order)).to(chosen) // site.head_width, chosen // site.head_width
        )
        directions, pair = logits.units.kept(ranks[unit_name(site, QUERY_KEY)], alive), (logits.query, logits.key)
        return ModuleCut(fold_attention(site, dense, pair, directions, values.basis, chosen, rows, bias), kept)
