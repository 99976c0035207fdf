"""The units of an attention module: directions of its heads' logits, and of their values."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear, without_value_bias
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import fold_attention, fold_values, without_biases
from lowrank_vit.modules.pooled_attention import fold_pool
from lowrank_vit.records.costs import UnitCosts
from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.moments import Moments, as_float64
from lowrank_vit.records.sites import QUERY_KEY, VALUE, AttentionSite, PoolSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import ATTENTIONS, AttentionDecomposition
from lowrank_vit.units import GROUPS, Ranks, Settings
from lowrank_vit.units.mixtures import mixed_logits, mixed_outputs
from lowrank_vit.units.modules import (
    KnownModule,
    ModuleCut,
    ModuleGroup,
    OutputApproximation,
    attention_sites,
    unit_name,
)


@GROUPS.register("attention")
@dataclass(frozen=True)
class AttentionGroup(ModuleGroup):
    """Describe one attention module, with the units ``query_key`` and ``value``, or with ``value`` alone."""

    revision: ClassVar[int] = 1

    site: AttentionSite
    method: AttentionDecomposition

    methods: ClassVar[Registry[type[AttentionDecomposition]]] = ATTENTIONS

    @classmethod
    def find(
        cls, model: nn.Module, method: AttentionDecomposition, settings: Settings, sites: str
    ) -> list[AttentionGroup]:
        """Find the attention modules of all blocks that have units for the method."""
        groups = [cls(site, method, settings) for site in attention_sites(model, settings, pools=method.pools)]
        return [group for group in groups if group.costs()]

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return the cost of each unit that the method reduces; ``tokens``: of an image.

        Once one unit is cut, one that stays whole has the smaller module's biases, too: keys and values have none.
        """
        costs = self.site.costs(tokens)
        own = {unit: each for unit, each in costs.items() if unit in self.method.units}
        added = [
            each.fixed + each.unit * each.count + each.dense * -1 for unit, each in costs.items() if unit not in own
        ]
        return {unit: replace(each, fixed=sum(added, each.fixed)) for unit, each in own.items()}

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the method and the report read, by layer."""
        *before, output = self.method.needs[-len(self.linears) :]
        needs = [*before, output | {"input_second"}]
        return {site.name: names for site, names in zip(self.linears, needs, strict=True)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, InputSubset | Logits]:
        """Decompose what the method makes smaller: logits, unless they stay dense, values, or both."""
        site, parts = self.site, dict[str, InputSubset | Logits]()
        weight, bias = dense_linear(model, site.qkv)
        if QUERY_KEY in self.costs():
            parts[unit_name(site, QUERY_KEY)] = (
                self._pooled(model, site, moments)
                if isinstance(site, PoolSite)
                else self.method.logits(site, weight, bias, moments[site.qkv.name])
            )
        if VALUE in self.costs():
            output, _ = dense_linear(model, site.proj)
            made = weight[:, -len(output) :], bias[-len(output) :]
            parts[unit_name(site, VALUE)] = self.method.values(site, output, moments[site.proj.name], made)
        return parts

    def _pooled(self, model: nn.Module, site: PoolSite, moments: Mapping[str, Moments]) -> Logits:
        """Decompose the logits of attention pooling, whose queries are known."""
        pool: Any = model.get_submodule(site.name)
        weight, bias = as_float64(pool.q.weight), as_float64(pool.q.bias) if site.qkv.bias else 0.0
        queries = as_float64(pool.latent[0]) @ weight.T + bias
        method: Any = self.method
        return method.pooled(queries.unflatten(-1, (site.qkv.heads, -1)).transpose(0, 1), moments[site.qkv.name])

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller attention module at the sizes of its units."""
        site, model = self.site, known.model
        weight, bias = dense_linear(model, site.proj)
        every = torch.arange(len(weight), device=weight.device)
        whole = InputSubset.pruned(Directions(every, weight.new_zeros(len(weight) + 1)), weight)
        values = known.parts.get(unit_name(site, VALUE), whole)
        assert isinstance(values, InputSubset)
        chosen = values.units.kept(ranks.get(unit_name(site, VALUE)))
        rows, approximation = refitted(values, chosen)
        bias = bias + values.mean @ (weight - approximation)
        basis = Logits.whole(site.qkv.heads, site.head_width, weight).query if values.basis is None else values.basis
        before, columns = dense_linear(model, site.qkv), torch.block_diag(*basis)[:, chosen]
        value_bias = before[1][-len(weight) :]
        if site.dense_logits:
            attention = without_value_bias(copy.deepcopy(model.get_submodule(site.name)))
            kept = OutputApproximation(columns, torch.zeros_like(value_bias) if site.qkv.bias else value_bias)
            return ModuleCut(fold_values(site, attention, before, basis, chosen, rows, bias), kept)
        logits = known.parts.get(unit_name(site, QUERY_KEY), Logits.whole(site.qkv.heads, site.head_width, weight))
        assert isinstance(logits, Logits)
        # where a head passes nothing on, its queries and keys would do nothing: those of the others take their place
        alive = torch.isin(every // site.head_width, chosen // site.head_width)
        kept = OutputApproximation(columns, value_bias)
        if isinstance(site, PoolSite):
            directions, pool = logits.units.kept(ranks[unit_name(site, QUERY_KEY)]), model.get_submodule(site.name)
            pair = (logits.query, logits.key, directions)
            return ModuleCut(fold_pool(site, pool, before, pair, (basis, chosen), (rows, bias)), kept)
        dense = family_of(model).attention_weights(model, site)
        directions = logits.units.kept(ranks.get(unit_name(site, QUERY_KEY)), alive)
        small = fold_attention(site, dense, logits.pair(directions), directions, basis, chosen, rows, bias)
        return ModuleCut(small if self.method.biases else without_biases(small), kept)

    def mixture(self, known: KnownModule, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the dense module's parameters, given the shares of several sizes of a unit."""
        site, part, biases = self.site, known.parts[unit], self.method.biases
        if isinstance(part, InputSubset):
            return mixed_outputs(known.model, site.proj, part, sizes, biases)
        if isinstance(site, PoolSite):
            raise InputError(
                f"{unit!r} belongs to attention pooling, whose sizes cannot be searched by gates: choose other units"
            )
        assert isinstance(part, Logits)
        return mixed_logits(known.model, site.qkv, part, sizes, biases)
