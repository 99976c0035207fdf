"""The heads of an attention module, kept or left out as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import fold_attention
from lowrank_vit.records.costs import UnitCosts
from lowrank_vit.records.factors import Directions, InputSubset, Logits, WholeHeads
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HEAD, AttentionSite, Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import WHOLE_HEADS, HeadChoice
from lowrank_vit.units import GROUPS, Ranks, Settings
from lowrank_vit.units.mixtures import mixed_outputs
from lowrank_vit.units.modules import (
    KnownModule,
    ModuleCut,
    ModuleGroup,
    OutputApproximation,
    attention_sites,
    unit_name,
)


@GROUPS.register("whole_heads")
@dataclass(frozen=True)
class WholeHeadGroup(ModuleGroup):
    """Describe one attention module, with the unit ``head``: what is left is the dense module with fewer heads."""

    revision: ClassVar[int] = 1

    site: AttentionSite
    method: HeadChoice

    methods: ClassVar[Registry[type[HeadChoice]]] = WHOLE_HEADS

    @classmethod
    def find(cls, model: nn.Module, method: HeadChoice, settings: Settings, sites: str) -> list[WholeHeadGroup]:
        """Find the attention modules of all blocks whose queries and keys can be removed with the values."""
        found = attention_sites(model, settings, pools=False)
        return [cls(site, method, settings) for site in found if not site.dense_logits]

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the output layer, whose inputs the heads make."""
        return (self.site.proj,)

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return what the heads cost; ``tokens``: of an image."""
        return {HEAD: self.site.head_costs(tokens)}

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics of the output layer that the method and the report read."""
        return {self.site.proj.name: self.method.needs | {"input_second"}}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, WholeHeads]:
        """Order the heads."""
        return {unit_name(self.site, HEAD): self.method(self.site, moments[self.site.proj.name])}

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the attention module of the kept heads; nothing is refitted."""
        site, model = self.site, known.model
        part = known.parts[unit_name(site, HEAD)]
        assert isinstance(part, WholeHeads)
        heads = part.units.kept(ranks[unit_name(site, HEAD)])
        weight, bias = dense_linear(model, site.proj)
        kept = (heads[:, None] * site.head_width + torch.arange(site.head_width).to(heads)).flatten()
        if part.mean is not None:
            bias = bias + part.mean @ weight - part.mean[kept] @ weight[kept]
        same = Logits.whole(site.qkv.heads, site.head_width, weight).query
        dense = family_of(model).attention_weights(model, site)
        small = fold_attention(site, dense, (same, same), kept, same, kept, weight[kept], bias)
        columns = torch.eye(len(weight)).to(weight)[:, kept]
        return ModuleCut(small, OutputApproximation(columns, dense.bias[-len(weight) :]))

    def mixture(self, known: KnownModule, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the dense module's parameters, given the shares of several numbers of heads."""
        site, units = self.site, known.parts[unit].units
        width, (weight, _) = site.head_width, dense_linear(known.model, site.proj)
        order = (units.order[:, None] * width + torch.arange(width).to(units.order)).flatten()
        kept = InputSubset.pruned(Directions(order, weight.new_zeros(len(order) + 1)), weight)
        return mixed_outputs(known.model, site.proj, kept, [None if size is None else size * width for size in sizes])
