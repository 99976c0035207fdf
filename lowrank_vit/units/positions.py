"""The rank of the position embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import UnknownWholeError, family_of
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.positions import Positions
from lowrank_vit.modules.surgery import part, replace_module
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments, as_float64
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site, TableSite
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import TABLES, TableDecomposition
from lowrank_vit.units import GROUPS, PLAIN, Ranks, Settings, cubic_work


def table_site(model: nn.Module) -> TableSite | None:
    """Describe the position embedding; None where the model has none that is known."""
    try:
        return family_of(model).positions(model)
    except UnknownWholeError:
        return None


@GROUPS.register("positions")
@dataclass(frozen=True)
class PositionGroup:
    """Describe the position embedding, whose only unit, under its name, is its rank."""

    revision: ClassVar[int] = 1

    site: TableSite
    method: TableDecomposition
    settings: Settings = PLAIN

    methods: ClassVar[Registry[type[TableDecomposition]]] = TABLES
    ahead: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return the table's name."""
        return self.site.name

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer at whose output the loss's gradient is seen."""
        return (self.site.after,)

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        return cubic_work(Site(self.name, self.site.tokens, self.site.width, bias=False))

    @classmethod
    def prepare(cls, model: nn.Module) -> None:
        """Replace the parameter by a module, in place."""
        site = table_site(model)
        if site is not None:
            replace_module(model, site.name, Positions.of(part(model, site.name)))

    @classmethod
    def find(cls, model: nn.Module, method: TableDecomposition, settings: Settings, sites: str) -> list[PositionGroup]:
        """Find the position embedding, where there is one."""
        site = table_site(model)
        return [] if site is None else [cls(site, method, settings)]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the method reads."""
        return {self.site.after.name: self.method.needs}

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return nothing: the error is that of the table, whatever the images."""
        return {}

    def curve(self, loss: Tensor) -> ErrorCurve:
        """Return the curve for an allocator; ``loss``: at every rank, (k + 1,). The product is computed for each image."""
        tokens, width = self.site.tokens, self.site.width
        unit, dense = Cost(tokens + width, tokens * width), Cost(tokens * width)
        return ErrorCurve(self.name, loss, unit, dense, multiple=self.settings.rank_multiple)

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without losses."""
        return [self.curve(torch.zeros(min(self.site.tokens, self.site.width) + 1))]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Factors]:
        """Decompose the table."""
        return {self.name: self.method(self.table(model), moments[self.site.after.name])}

    def table(self, model: nn.Module) -> Tensor:
        """Return a model's table, (t, n), float64."""
        return as_float64(part(model, self.name)())[0]

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Factors],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownPositions:
        """Return the table with its factors."""
        return KnownPositions(self, model, parts[self.name])


@dataclass(frozen=True)
class KnownPositions:
    """Hold the position embedding with all its directions."""

    group: PositionGroup
    model: nn.Module
    factors: Factors
    cap: int | None = None

    def curves(self) -> list[ErrorCurve]:
        """Return the only curve."""
        return [self.group.curve(self.factors.loss.cpu())]

    def probe_rank(self, unit: str) -> int:
        """Return half the full rank."""
        return max(1, (len(self.factors.loss) - 1) // 2)

    def cut(self, ranks: Ranks) -> TableCut:
        """Cut the factors at a rank."""
        rank = ranks[self.group.name]
        u, v = self.factors.cut(len(self.factors.loss) - 1 if rank is None else rank)
        return TableCut(Positions.product(u, v, part(self.model, self.group.name).rows))

    def entry(self, cut: TableCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the table's entry of the report: the error is relative to the table's energy."""
        site, table = self.group.site, self.group.table(self.model)
        error = float((table - self.group.table(compressed)).square().sum() / table.square().sum().clamp_min(1e-300))
        rank = None if cut is None else ranks[site.name]
        details: dict[str, Any] = {
            "ridge": self.factors.ridge,
            "objective": None if rank is None else float(self.factors.loss[rank]),
        }
        return {
            "name": site.name,
            "in_features": site.tokens,
            "out_features": site.width,
            "rank": rank,
            "z": None,
            "params": parameter_count(compressed.get_submodule(site.name)),
            "relative_error": error,
            "relative_error_held_out": error,
            "details": details,
        }


@dataclass(frozen=True)
class TableCut:
    """Hold a table at its rank; there is no residual to fit a Z to."""

    module: Positions
    residual: None = None

    def fold(self) -> Positions:
        """Return the smaller table."""
        return self.module
