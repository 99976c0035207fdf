"""The hidden units of an MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import fold_mlp
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HIDDEN, MlpSite
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import MLPS, MlpDecomposition
from lowrank_vit.units import GROUPS, Ranks, Settings
from lowrank_vit.units.mixtures import mixed_outputs
from lowrank_vit.units.modules import (
    KnownModule,
    ModuleCut,
    ModuleGroup,
    OutputApproximation,
    unit_name,
    whole_modules,
)


@GROUPS.register("mlp")
@dataclass(frozen=True)
class MlpGroup(ModuleGroup):
    """Describe one MLP, with the unit ``hidden``."""

    revision: ClassVar[int] = 1

    site: MlpSite
    method: MlpDecomposition

    methods: ClassVar[Registry[type[MlpDecomposition]]] = MLPS

    @classmethod
    def find(cls, model: nn.Module, method: MlpDecomposition, settings: Settings, sites: str) -> list[MlpGroup]:
        """Find the MLPs of all blocks."""
        modules = whole_modules(model, settings)
        return [cls(site, method, settings) for site in modules if isinstance(site, MlpSite)]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics of the second layer that the method and the report read."""
        return {self.site.fc2.name: self.method.needs[0] | {"input_second"}}

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, InputSubset]:
        """Decompose the second layer."""
        (weight, _), dense = dense_linear(model, self.site.fc2), family_of(model).mlp_weights(model, self.site)
        made = dense.weight, dense.bias
        return {unit_name(self.site, HIDDEN): self.method(self.site, weight, moments[self.site.fc2.name], made)}

    def cut(self, known: KnownModule, ranks: Ranks) -> ModuleCut:
        """Make the smaller MLP at the chosen number of hidden units."""
        site, model = self.site, known.model
        subset = known.parts[unit_name(site, HIDDEN)]
        assert isinstance(subset, InputSubset)
        chosen = subset.units.kept(ranks[unit_name(site, HIDDEN)])
        rows, approximation = refitted(subset, chosen)
        weight, bias = dense_linear(model, site.fc2)
        bias = bias + subset.mean @ (weight - approximation)
        kept = OutputApproximation(torch.eye(len(weight)).to(weight)[:, chosen], weight.new_zeros(len(weight)))
        dense = family_of(model).mlp_weights(model, site)
        return ModuleCut(fold_mlp(site, dense, chosen, rows, bias), kept)

    def mixture(self, known: KnownModule, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the dense module's parameters, given the shares of several sizes."""
        subset = known.parts[unit]
        assert isinstance(subset, InputSubset)
        return mixed_outputs(known.model, self.site.fc2, subset, sizes)
