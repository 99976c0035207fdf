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
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import ROW, Site
from lowrank_vit.records.split_rows import SplitRows, SplitSite
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.compensate.kinds.structured import StructuredCorrection
from lowrank_vit.stages.decompose.rows import ROWS, RowChoice
from lowrank_vit.units import GROUPS, PLAIN, Ranks, Settings, cubic_work, tokens_of_an_image


@GROUPS.register("rows")
@dataclass(frozen=True)
class RowGroup:
    """Describe one linear layer, whose only unit is the number of rows beside its low-rank part, at least one."""

    revision: ClassVar[int] = 1

    site: Site
    method: RowChoice
    settings: Settings = PLAIN

    methods: ClassVar[Registry[type[RowChoice]]] = ROWS

    @property
    def name(self) -> str:
        """Return the layer's name."""
        return self.site.name

    @property
    def unit(self) -> str:
        """Return the name of its unit."""
        return f"{self.name}.{ROW}"

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer itself."""
        return (self.site,)

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        return cubic_work(self.site)

    @property
    def split(self) -> SplitSite:
        """Return the layer's site with the share of its low-rank part, which tells the costs."""
        return SplitSite(self.site, self.method.share)

    @property
    def rank(self) -> int:
        """Return the rank of the low-rank part."""
        return self.split.rank

    @classmethod
    def find(cls, model: nn.Module, method: RowChoice, settings: Settings, sites: str) -> list[RowGroup]:
        """Find the linear layers whose names match ``sites``."""
        return [cls(site, method, settings) for site in find_sites(model, sites)]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the method and the report read."""
        return {self.name: self.method.needs | {"second"}}

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return the second moment of the smaller side."""
        return {self.name: frozenset({"second"})}

    def curve(self, loss: Tensor, tokens: int = 0) -> ErrorCurve:
        """Return the curve for an allocator; ``loss``: with 0 ... d rows, (d + 1,)."""
        row, fixed, dense = self.split.costs(tokens)
        bias = self.site.out_features if self.settings.bias_correction and not self.site.bias else 0
        return ErrorCurve(self.unit, loss, row, dense, fixed + Cost(bias), self.settings.rank_multiple)

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without losses."""
        return [self.curve(torch.zeros(self.site.out_features + 1), tokens.get(self.name, 0))]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, SplitRows]:
        """Split the layer's weight."""
        return {self.unit: self.method(dense_weight(model, self.site), self.rank, moments[self.name])}

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, SplitRows],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownRows:
        """Return the layer with its low-rank part, and its rows in order."""
        own = [moments[self.name], *([] if unseen is None else [unseen[self.name]])]
        return KnownRows(self, model, parts[self.unit], own)


@dataclass(frozen=True)
class KnownRows:
    """Hold a linear layer with its low-rank part, and its rows in order."""

    group: RowGroup
    model: nn.Module
    parts: SplitRows
    moments: list[Moments]  # on the calibration images, and on unseen ones where there are any

    cap: ClassVar[int | None] = None

    @cached_property
    def weight(self) -> Tensor:
        """Return the dense weight, (n, d), float64."""
        return dense_weight(self.model, self.group.site)

    @cached_property
    def mean(self) -> Tensor | None:
        """Return the mean input, (n,), where the bias takes up the mean of what is lost."""
        return self.moments[0].mean("input_sum") if self.group.settings.bias_correction else None

    def curves(self) -> list[ErrorCurve]:
        """Return the only curve."""
        tokens = tokens_of_an_image(self.moments[0])
        return [self.group.curve(self.parts.units.loss.cpu(), tokens)]

    def probe_rank(self, unit: str) -> int:
        """Return half of the rows."""
        return max(1, self.group.site.out_features // 2)

    def cut(self, ranks: Ranks) -> RowCut:
        """Keep the first rows."""
        return RowCut(self, self.parts.units.kept(ranks[self.group.unit]))

    def entry(self, cut: RowCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the layer's entry of the report."""
        site = self.group.site
        errors = [0.0] * len(self.moments) if cut is None else cut.relative_errors()
        return {
            "name": site.name,
            "in_features": site.in_features,
            "out_features": site.out_features,
            "rank": None if cut is None else self.group.rank,
            "z": None,
            "params": site.parameters if cut is None else cut.layer.parameters,
            "relative_error": errors[0],
            "relative_error_held_out": errors[1] if len(errors) > 1 else None,
            "details": {ROW: None if cut is None else len(cut.kept)},
        }


@dataclass(frozen=True)
class RowCut:
    """Hold a linear layer with its low-rank part and some rows, (kept,), ascending."""

    known: KnownRows
    kept: Tensor

    residual: ClassVar[Tensor | None] = None

    @cached_property
    def approximation(self) -> Tensor:
        """Return the smaller layer's weight, (n, d)."""
        whole = self.known.parts.u @ self.known.parts.v.T
        whole[:, self.kept] = self.known.weight[:, self.kept]
        return whole

    @cached_property
    def layer(self) -> CutLayer:
        """Return the factors, the rows beside them, and the shift of the bias."""
        known, site = self.known, self.known.group.site
        u, v = known.parts.u, known.parts.v
        rows = StructuredCorrection(site.in_features, site.out_features, "columns", len(self.kept))
        rows.values.data = (known.weight[:, self.kept] - u @ v[self.kept].T).T.contiguous()
        rows.index = self.kept.int()
        shift = None if known.mean is None else known.mean @ (known.weight - self.approximation)
        return CutLayer(site, known.group.rank, u, v, rows, shift)

    def fold(self) -> LowRankLinear:
        """Make the smaller layer."""
        return fold(self.layer, get_linear(self.known.model, self.known.group.site))

    def relative_errors(self) -> list[float]:
        """Return ``E||y - y^||^2 / E||x W||^2`` on the seen and on the unseen images."""
        known = self.known
        metrics = [output_metric(known.weight, each, centred=False, about=known.mean) for each in known.moments]
        return [metric.relative_error(self.approximation) for metric in metrics]
