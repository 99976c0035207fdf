"""Inputs of a module, and values' dimensions or hidden units, under one order, since each costs what the others leave."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear, without_value_bias
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import fold_attention, fold_mlp, fold_values
from lowrank_vit.modules.select_input import SelectInput
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.columns import Columns, input_reader
from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Logits
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import HIDDEN, INPUT, PART, VALUE, AttentionSite, MlpSite, PoolSite, Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose.columns import COLUMNS, ColumnChoice
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


@GROUPS.register("columns")
@dataclass(frozen=True)
class ColumnGroup(ModuleGroup):
    """Describe one attention module or MLP, with the unit ``part``: inputs, and values' dimensions or hidden units."""

    revision: ClassVar[int] = 1

    site: AttentionSite | MlpSite
    method: ColumnChoice

    methods: ClassVar[Registry[type[ColumnChoice]]] = COLUMNS

    @classmethod
    def find(cls, model: nn.Module, method: ColumnChoice, settings: Settings, sites: str) -> list[ColumnGroup]:
        """Find the attention modules and MLPs of all blocks. Raises ``InputError`` for factors that are to be pivoted."""
        if settings.pivoted:
            raise InputError("layers that read some of their inputs cannot be pivoted: leave out pivoted")
        found = [site for site in whole_modules(model, settings) if not isinstance(site, PoolSite)]
        return [cls(site, method, settings) for site in found]

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer that reads the module's input, where inputs can be removed, and the output layer."""
        reader, output = input_reader(self.site), self.site.linears[-1]
        return (output,) if reader is None else (reader, output)

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics of the output layer that the method and the report read; of inputs, the mean suffices."""
        output = self.linears[-1].name
        return {site.name: frozenset() for site in self.linears} | {output: self.method.needs | {"input_second"}}

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return the average cost of the parts; ``tokens``: of an image."""
        dense, count = dense_cost(self.site, tokens), sum(site.in_features for site in self.linears)
        count -= len(self.linears) - 1  # the best of either kind are one rank
        return {PART: UnitCosts(count, Cost(dense.parameters // count + 1, dense.macs // count + 1), dense)}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Columns]:
        """Order the parts."""
        *first, output = (moments[site.name] for site in self.linears)
        return {unit_name(self.site, PART): self.method(output, first[0] if first else None)}

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without losses, of parts in turn."""
        *inputs, inner = (torch.linspace(1, 0, site.in_features) for site in self.linears)
        mean = torch.zeros(len(inner))
        parts = Columns.by_score(inner, inputs[0] if inputs else None, mean)
        return self.part_curves(parts, tokens.get(self.linears[-1].name, 0))

    def part_curves(self, parts: Columns, tokens: int) -> list[ErrorCurve]:
        """Return the curve with exact parameters; multiply-accumulates are those of parts on average."""
        own = self.costs(tokens)[PART]
        saved = tuple(rank * own.unit.parameters - cost for rank, cost in enumerate(self._exact(parts)))
        return [ErrorCurve(unit_name(self.site, PART), parts.units.loss.cpu(), own.unit, own.dense, saved=saved)]

    def _exact(self, parts: Columns) -> list[int]:
        """Count the parameters of every rank."""
        site, output, (inner, inputs) = self.site, self.linears[-1], parts.counts()
        read = inputs if len(self.linears) > 1 else None
        if isinstance(site, MlpSite):
            found = pruned(site, inner, output.out_features, read)
        elif site.dense_logits:
            own = site.costs()[VALUE]
            found = own.fixed.parameters + inner * own.unit.parameters
        else:
            places = torch.where(parts.inner, parts.index // site.head_width, site.qkv.heads)
            seen = nn.functional.one_hot(places, site.qkv.heads + 1).cumsum(0)[:, :-1] > 0
            heads = torch.cat([seen.new_zeros(1, dtype=torch.long), seen.sum(1)])[parts.foremost :]
            found = pruned(site, heads, output.out_features, read, heads * site.head_width - inner)
        exact: list[int] = found.tolist()
        return exact

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Columns],  # type: ignore[override]
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownModule:
        """Return the module with its parts in order."""
        known = super().known(model, parts, moments, unseen)  # type: ignore[arg-type]
        return KnownColumns(**vars(known))

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller module of the kept parts; nothing is refitted."""
        site, model = self.site, known.model
        parts = known.parts[unit_name(site, PART)]
        assert isinstance(parts, Columns)
        kept, inputs = parts.kept(ranks[unit_name(site, PART)])
        weight, bias = dense_linear(model, self.linears[-1])
        bias = bias + parts.inner_mean @ weight - parts.inner_mean[kept] @ weight[kept]
        output = weight[kept], bias
        if isinstance(site, MlpSite):
            small, offset = _mlp(model, site, parts.input_mean, inputs, kept, output)
        elif site.dense_logits:
            small, offset = _values(model, site, kept, output)
        else:
            small, offset = _attention(model, site, parts.input_mean, inputs, kept, output)
        return ModuleCut(small, OutputApproximation(torch.eye(len(weight)).to(weight)[:, kept], offset))

    def mixture(self, known: KnownModule, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Raise ``InputError``: there is no mixture."""
        raise InputError(f"the sizes of {self.name!r} cannot be searched by gates: choose a recipe without a search")


@dataclass(frozen=True)
class KnownColumns(KnownModule):
    """Hold a module with its parts in order."""

    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every number of parts."""
        parts = self.parts[unit_name(self.site, PART)]
        curves: list[ErrorCurve] = self.group.part_curves(parts, self.tokens)
        return curves

    def entry(self, cut: ModuleCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report, whose rank counts inner parts; its error leaves out the inputs' loss."""
        entry, name = super().entry(cut, ranks, compressed), unit_name(self.site, PART)
        parts = self.parts[name]
        assert isinstance(parts, Columns)
        kept, inputs = parts.kept(ranks[name])
        inner = HIDDEN if isinstance(self.site, MlpSite) else VALUE
        counts = {inner: len(kept), f"{inner}_of": len(parts.inner_mean)}
        if inputs is not None:
            counts |= {INPUT: len(inputs), f"{INPUT}_of": self.site.in_features}
        others = {name: value for name, value in entry["details"].items() if name not in (PART, f"{PART}_of")}
        return {**entry, "rank": None if cut is None else len(kept), "details": {**others, **counts}}


Kept = Tensor | None  # indices of inputs; None: all stay
Folded = tuple[nn.Module, Tensor]  # a module, and what its output layer is no longer given of its inputs, (h,)


def _lost(weight: Tensor, mean: Tensor | None, kept: Kept) -> Tensor:
    """Return what the removed inputs add to a layer's outputs on average, (d,); weight: (n, d)."""
    return weight.new_zeros(weight.shape[1]) if mean is None else mean @ weight - mean[kept] @ weight[kept]


def _select(module: nn.Module, names: Sequence[str], kept: Kept) -> None:
    """Let linear layers of a module read the kept inputs alone, in place."""
    for name in names:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if kept is not None and len(kept) < layer.in_features:
            replace_module(module, name, SelectInput.of(layer, kept))


def _mlp(
    model: nn.Module, site: MlpSite, mean: Tensor | None, inputs: Kept, kept: Tensor, output: tuple[Tensor, Tensor]
) -> Folded:
    """Make the MLP; with fewer inputs its first layer gets a bias."""
    dense = family_of(model).mlp_weights(model, site)
    dense = replace(dense, bias=dense.bias + _lost(dense.weight, mean, inputs))
    if inputs is not None and len(inputs) < site.in_features:
        site = replace(site, inputs=(replace(site.inputs[0], bias=True),))
    small = fold_mlp(site, dense, kept, *output)
    _select(small, ("fc1",), inputs)
    return small, dense.weight.new_zeros(site.fc2.in_features)


def _attention(
    model: nn.Module,
    site: AttentionSite,
    mean: Tensor | None,
    inputs: Kept,
    kept: Tensor,
    output: tuple[Tensor, Tensor],
) -> Folded:
    """Make the attention; a head without values loses its queries and keys, too."""
    dense = family_of(model).attention_weights(model, site)
    dense = replace(dense, bias=dense.bias + _lost(dense.weight, mean, inputs))
    every = torch.arange(site.proj.in_features).to(kept)
    logits = every[torch.isin(every // site.head_width, kept // site.head_width)]
    same = Logits.whole(site.qkv.heads, site.head_width, dense.weight).query
    small = fold_attention(site, dense, (same, same), logits, same, kept, *output)
    _select(small, ("query", "key_value"), inputs)
    return small, dense.bias[-len(every) :]


def _values(model: nn.Module, site: AttentionSite, kept: Tensor, output: tuple[Tensor, Tensor]) -> Folded:
    """Make the attention whose queries and keys stay as they are."""
    before, attention = dense_linear(model, site.qkv), copy.deepcopy(model.get_submodule(site.name))
    same = Logits.whole(site.qkv.heads, site.head_width, before[0]).query
    small = fold_values(site, without_value_bias(attention), before, same, kept, *output)
    value_bias = before[1][-site.proj.in_features :]
    return small, torch.zeros_like(value_bias) if site.qkv.bias else value_bias
