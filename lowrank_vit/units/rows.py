"""The rows that stand beside a low-rank part of fixed rank, in a single linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import dense_weight, find_sites
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.modules.fold import CutLayer, fold
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import SplitRows, SplitSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import ROW, Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.compensate.kinds.sparse import StructuredCorrection
from lowrank_vit.stages.decompose import ROWS, RowChoice
from lowrank_vit.units.base import UNITS, Decomposed, Needs, Ranks, Settings, Unit


@dataclass(frozen=True)
class RowCut:
    """Hold a linear layer with its low-rank part and some rows, (kept,), ascending."""

    decomposed: DecomposedRows
    kept: Tensor

    residual: ClassVar[Tensor | None] = None

    @cached_property
    def approximation(self) -> Tensor:
        """Return the smaller layer's weight, (n, d)."""
        whole = self.decomposed.found.u @ self.decomposed.found.v.T
        whole[:, self.kept] = self.decomposed.weight[:, self.kept]
        return whole

    @cached_property
    def layer(self) -> CutLayer:
        """Return the factors, the rows beside them, and the shift of the bias."""
        decomposed, site = self.decomposed, self.decomposed.unit.site
        u, v = decomposed.found.u, decomposed.found.v
        rows = StructuredCorrection(site.in_features, site.out_features, "columns", len(self.kept))
        rows.values.data = (decomposed.weight[:, self.kept] - u @ v[self.kept].T).T.contiguous()
        rows.index = self.kept.int()
        shift = None if decomposed.mean is None else decomposed.mean @ (decomposed.weight - self.approximation)
        return CutLayer(site, decomposed.unit.rank, u, v, rows, shift)

    def fold(self) -> LowRankLinear:
        return fold(self.layer, get_linear(self.decomposed.model, self.decomposed.unit.site))

    def relative_errors(self) -> list[float]:
        """Return ``E||y - y^||^2 / E||x W||^2`` on the seen and on the unseen images."""
        decomposed = self.decomposed
        return [
            output_metric(decomposed.weight, moments, centred=False, about=decomposed.mean).relative_error(
                self.approximation
            )
            for moments in decomposed.statistics(decomposed.unit.name)
        ]


@dataclass(frozen=True)
class DecomposedRows(Decomposed[SplitRows, RowCut]):
    """Hold a linear layer with its low-rank part, and its rows in order."""

    unit: RowUnit

    @cached_property
    def weight(self) -> Tensor:
        """Return the dense weight, (n, d), float64."""
        return dense_weight(self.model, self.unit.site)

    @cached_property
    def mean(self) -> Tensor | None:
        return self.moments[self.unit.name].mean("input_sum") if self.unit.settings.bias_correction else None

    def cut(self, ranks: Ranks) -> RowCut:
        return RowCut(self, self.found.units.kept(ranks[self.unit.part]))

    def entry(self, cut: RowCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        site = self.unit.site
        errors = [0.0] * len(self.statistics(site.name)) if cut is None else cut.relative_errors()
        return {
            "name": site.name,
            "in_features": site.in_features,
            "out_features": site.out_features,
            "rank": None if cut is None else self.unit.rank,
            "z": None,
            "params": site.parameters if cut is None else cut.layer.parameters,
            "relative_error": errors[0],
            "relative_error_held_out": errors[1] if len(errors) > 1 else None,
            "details": {ROW: None if cut is None else len(cut.kept)},
        }


@UNITS.register("rows")
@dataclass(frozen=True)
class RowUnit(Unit[RowChoice, SplitRows]):
    """Describe one linear layer, whose only part is the rows beside its low-rank part, at least one."""

    site: Site

    methods: ClassVar[Registry[type[RowChoice]]] = ROWS
    result: ClassVar[type[DecomposedRows]] = DecomposedRows

    @property
    def part(self) -> str:
        """Return the name of its part."""
        return f"{self.name}.{ROW}"

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.site,)

    @property
    def split(self) -> SplitSite:
        """Return the layer's site with the share of its low-rank part, which tells the costs."""
        return SplitSite(self.site, self.method.share)

    @property
    def rank(self) -> int:
        """Return the rank of the low-rank part."""
        return self.split.rank

    @classmethod
    def find(cls, model: nn.Module, method: RowChoice, settings: Settings, sites: str) -> list[RowUnit]:
        return [cls(site, method, settings) for site in find_sites(model, sites)]

    def needs(self) -> Needs:
        return {self.name: self.method.needs | {"second"}}

    def report_needs(self) -> Needs:
        """Return the second moment of the smaller side."""
        return {self.name: frozenset({"second"})}

    def curves(self, tokens: Mapping[str, int], parts: Mapping[str, SplitRows] | None = None) -> list[ErrorCurve]:
        loss = torch.zeros(self.site.out_features + 1) if parts is None else parts[self.part].units.loss.cpu()
        row, fixed, dense = self.split.costs(tokens.get(self.name, 0))
        bias = self.site.out_features if self.settings.bias_correction and not self.site.bias else 0
        return [ErrorCurve(self.part, loss, row, dense, fixed + Cost(bias), self.settings.rank_multiple)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, SplitRows]:
        return {self.part: self.method(dense_weight(model, self.site), self.rank, moments[self.name])}
