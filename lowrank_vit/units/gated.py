"""Heads or hidden units, and outputs, of a module under one order, since each costs what the others leave of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.modules.fold import fold_attention, fold_mlp
from lowrank_vit.modules.scatter_output import ScatterOutput
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import GatedParts, Logits
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import PART, AttentionSite, MlpSite, PoolSite, Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import GATED, PartChoice
from lowrank_vit.stages.gates.expected import dense_cost, pruned
from lowrank_vit.units import GROUPS, Ranks, Settings
from lowrank_vit.units.modules import (
    KnownModule,
    ModuleCut,
    ModuleGroup,
    OutputApproximation,
    unit_name,
    whole_modules,
)


@GROUPS.register("gated")
@dataclass(frozen=True)
class GatedGroup(ModuleGroup):
    """Describe one attention module or MLP, with the unit ``part``: inner parts (heads or hidden units), and outputs."""

    revision: ClassVar[int] = 1

    site: AttentionSite | MlpSite
    method: PartChoice

    methods: ClassVar[Registry[type[PartChoice]]] = GATED

    @classmethod
    def find(cls, model: nn.Module, method: PartChoice, settings: Settings, sites: str) -> list[GatedGroup]:
        """Find the MLPs, and the attention modules whose queries and keys can be removed with the values."""
        found = [site for site in whole_modules(model, settings) if not isinstance(site, PoolSite)]
        return [cls(site, method, settings) for site in found if isinstance(site, MlpSite) or not site.dense_logits]

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the output layer."""
        return (self.site.linears[-1],)

    @property
    def inner(self) -> int:
        """Count the heads, or the hidden units."""
        return self.site.qkv.heads if isinstance(self.site, AttentionSite) else self.site.fc2.in_features

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics of the output layer that the method and the report read."""
        return {self.linears[0].name: self.method.needs | {"input_second"}}

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return the average cost of the parts; ``tokens``: of an image."""
        dense, count = dense_cost(self.site, tokens), self.inner + self.linears[0].out_features - 1
        return {PART: UnitCosts(count, Cost(dense.parameters // count + 1, dense.macs // count + 1), dense)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, GatedParts]:
        """Order the parts."""
        return {unit_name(self.site, PART): self.method(self.site, moments[self.linears[0].name])}

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without losses, of parts in turn."""
        inner, outputs = torch.linspace(1, 0, self.inner), torch.linspace(1, 0, self.linears[0].out_features)
        parts = GatedParts.by_score(inner, outputs, torch.zeros(self.linears[0].in_features))
        return self.part_curves(parts, tokens.get(self.linears[0].name, 0))

    def part_curves(self, parts: GatedParts, tokens: int) -> list[ErrorCurve]:
        """Return the curve with exact parameters; multiply-accumulates are those of parts on average."""
        own, inner = self.costs(tokens)[PART], parts.inner.cpu().long().cumsum(0)
        exact = pruned(self.site, inner, torch.arange(1, len(inner) + 1) - inner).tolist()
        saved = tuple(rank * own.unit.parameters - cost for rank, cost in enumerate(exact))
        return [ErrorCurve(unit_name(self.site, PART), parts.units.loss.cpu(), own.unit, own.dense, saved=saved)]

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, GatedParts],  # type: ignore[override]
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownModule:
        """Return the module with its parts in order."""
        known = super().known(model, parts, moments, unseen)  # type: ignore[arg-type]
        return KnownParts(**vars(known))

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller module of the kept parts; nothing is refitted."""
        site, model, output = self.site, known.model, self.linears[0]
        parts = known.parts[unit_name(site, PART)]
        assert isinstance(parts, GatedParts)
        inner, outputs = parts.kept(ranks[unit_name(site, PART)])
        weight, bias = dense_linear(model, output)
        width = len(weight) // self.inner
        kept = (inner[:, None] * width + torch.arange(width).to(inner)).flatten()
        bias = bias + parts.mean @ weight - parts.mean[kept] @ weight[kept]
        offset = torch.zeros_like(parts.mean)
        small: nn.Module
        if isinstance(site, AttentionSite):
            same, dense = Logits.whole(self.inner, width, weight).query, family_of(model).attention_weights(model, site)
            small = fold_attention(site, dense, (same, same), kept, same, kept, weight[kept], bias)
            offset = dense.bias[-len(weight) :]
        else:
            small = fold_mlp(site, family_of(model).mlp_weights(model, site), kept, weight[kept], bias)
        name = "proj" if isinstance(site, AttentionSite) else "fc2"
        if len(outputs) < output.out_features:
            replace_module(small, name, ScatterOutput.of(small.get_submodule(name), outputs))  # type: ignore[arg-type]
        return ModuleCut(small, OutputApproximation(torch.eye(len(weight)).to(weight)[:, kept], offset))


@dataclass(frozen=True)
class KnownParts(KnownModule):
    """Hold a module with its parts in order."""

    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every number of parts."""
        parts = self.parts[unit_name(self.site, PART)]
        curves: list[ErrorCurve] = self.group.part_curves(parts, self.tokens)
        return curves
