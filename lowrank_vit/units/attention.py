"""The units of an attention module: directions of its heads' logits, and of their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import without_biases
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.narrow_values import fold_pool
from lowrank_vit.records.costs import UnitCosts
from lowrank_vit.records.factors import Directions, InputSubset, Logits
from lowrank_vit.records.moments import Moments, as_float64
from lowrank_vit.records.sites import QUERY_KEY, VALUE, AttentionSite, PoolSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import ATTENTIONS, AttentionDecomposition
from lowrank_vit.units.base import UNITS, Needs, Ranks, Settings
from lowrank_vit.units.modules import (
    ModuleCut,
    ModuleUnit,
    OutputApproximation,
    mixed_logits,
    mixed_outputs,
    smaller_attention,
    whole_modules,
)

Part = InputSubset | Logits


@UNITS.register("attention")
@dataclass(frozen=True)
class AttentionUnit(ModuleUnit[AttentionDecomposition, Part]):
    """Describe one attention module, with the parts ``query_key`` and ``value``, or with ``value`` alone."""

    site: AttentionSite

    methods: ClassVar[Registry[type[AttentionDecomposition]]] = ATTENTIONS

    @classmethod
    def find(
        cls, model: nn.Module, method: AttentionDecomposition, settings: Settings, sites: str
    ) -> "list[AttentionUnit]":
        found = [site for site in whole_modules(model, settings) if isinstance(site, AttentionSite)]
        units = [cls(site, method, settings) for site in found if method.pools or not isinstance(site, PoolSite)]
        return [unit for unit in units if unit.costs()]

    def costs(self) -> dict[str, UnitCosts]:
        """Return the cost of each part that the method reduces.

        Once one part is cut, one that stays whole has the smaller module's biases, too: keys and values have none.
        """
        costs = super().costs()
        own = {part: each for part, each in costs.items() if part in self.method.units}
        added = [
            each.fixed + each.unit * each.count + each.dense * -1 for part, each in costs.items() if part not in own
        ]
        return {part: replace(each, fixed=sum(added, each.fixed)) for part, each in own.items()}

    def needs(self) -> Needs:
        *before, output = self.method.needs[-len(self.linears) :]
        needs = [*before, output | {"input_second"}]
        return {site.name: names for site, names in zip(self.linears, needs, strict=True)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Part]:
        site, parts = self.site, dict[str, Part]()
        weight, bias = dense_linear(model, site.qkv)
        if QUERY_KEY in self.costs():
            parts[self.named(QUERY_KEY)] = (
                self._pooled(model, site, moments)
                if isinstance(site, PoolSite)
                else self.method.logits(site, weight, bias, moments[site.qkv.name])
            )
        if VALUE in self.costs():
            output, _ = dense_linear(model, site.proj)
            made = weight[:, -len(output) :], bias[-len(output) :]
            parts[self.named(VALUE)] = self.method.values(site, output, moments[site.proj.name], made)
        return parts

    def _pooled(self, model: nn.Module, site: PoolSite, moments: Mapping[str, Moments]) -> Logits:
        """Decompose the logits of attention pooling, whose queries are known."""
        pool: Any = model.get_submodule(site.name)
        weight, bias = as_float64(pool.q.weight), as_float64(pool.q.bias) if site.qkv.bias else 0.0
        queries = as_float64(pool.latent[0]) @ weight.T + bias
        method: Any = self.method
        return method.pooled(queries.unflatten(-1, (site.qkv.heads, -1)).transpose(0, 1), moments[site.qkv.name])

    def cut(self, ranks: Ranks) -> ModuleCut:
        site, model, (value, query_key) = self.site, self.model, map(self.named, (VALUE, QUERY_KEY))
        weight, bias = dense_linear(model, site.proj)
        every = torch.arange(len(weight), device=weight.device)
        whole = InputSubset.pruned(Directions(every, weight.new_zeros(len(weight) + 1)), weight)
        values = self.parts.get(value, whole)
        assert isinstance(values, InputSubset)
        kept = values.units.kept(ranks.get(value))
        rows, approximation = refitted(values, kept)
        output = rows, bias + values.mean @ (weight - approximation)
        if site.dense_logits:
            return smaller_attention(model, site, None, kept, output, values.basis)
        logits = self.parts.get(query_key, Logits.whole(site.qkv.heads, site.head_width, weight))
        assert isinstance(logits, Logits)
        if isinstance(site, PoolSite):
            return self._smaller_pool(site, logits, logits.units.kept(ranks[query_key]), values.basis, kept, output)
        dense = family_of(model).attention_weights(model, site)
        small = smaller_attention(model, site, dense, kept, output, values.basis, (logits, ranks.get(query_key)))
        if not self.method.biases:
            assert isinstance(small.module, LowRankAttention)
            without_biases(small.module)
        return small

    def _smaller_pool(
        self,
        site: PoolSite,
        logits: Logits,
        directions: Tensor,
        basis: Tensor | None,
        kept: Tensor,
        output: tuple[Tensor, Tensor],
    ) -> ModuleCut:
        before, pool = dense_linear(self.model, site.qkv), self.model.get_submodule(site.name)
        basis = Logits.whole(site.qkv.heads, site.head_width, output[0]).query if basis is None else basis
        small = fold_pool(site, pool, before, (logits.query, logits.key, directions), (basis, kept), output)
        offset = before[1][-site.proj.in_features :]
        return ModuleCut(small, OutputApproximation(torch.block_diag(*basis)[:, kept], offset))

    def mixture(self, part: str, sizes: Sequence[int | None]) -> Mixture:
        site, found, biases = self.site, self.parts[part], self.method.biases
        if isinstance(found, InputSubset):
            return mixed_outputs(self.model, site.proj, found, sizes, biases)
        if isinstance(site, PoolSite):
            raise InputError(
                f"{part!r} belongs to attention pooling, whose sizes cannot be searched by gates: choose other units"
            )
        return mixed_logits(self.model, site.qkv, found, sizes, biases)
