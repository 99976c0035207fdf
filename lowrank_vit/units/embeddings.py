"""The ranks of the patch embedding, as a linear layer over patches, and of the position embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import UnknownWholeError, family_of
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.embeddings import Patches, Positions, is_plain
from lowrank_vit.modules.surgery import part, replace_module
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments, as_float64
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site, TableSite
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import TABLES, Decomposition, TableDecomposition
from lowrank_vit.units.base import UNITS, Folded, Needs, Ranks, Settings, Unit, cubic_work, layer_entry
from lowrank_vit.units.linear import LayerUnit, LinearUnit

EMBEDDING = "patch_embed.proj"  # in all of timm's families that have one convolution for it


@UNITS.register("patches")
@dataclass(frozen=True)
class PatchUnit(LinearUnit):
    """Describe the patch embedding, whose only part is its rank; ``prepare`` makes a linear layer of the convolution."""

    ahead: ClassVar[bool] = True

    @classmethod
    def prepare(cls, model: nn.Module) -> None:
        """Exchange the convolution of patches that do not overlap for a linear layer, in place."""
        convolution = dict(model.named_modules()).get(EMBEDDING)
        if is_plain(convolution):
            assert isinstance(convolution, nn.Conv2d)
            replace_module(model, EMBEDDING, Patches.of(convolution))

    @classmethod
    def find(
        cls, model: nn.Module, method: Decomposition, settings: Settings, sites: str
    ) -> list[LayerUnit[Decomposition, Factors]]:
        """Find the patch embedding, where it is one that ``prepare`` knows."""
        if not isinstance(dict(model.named_modules()).get(EMBEDDING), Patches):
            return []
        return [cls(site, method, settings) for site in find_sites(model, rf"^{EMBEDDING}\.linear$")]

    def needs(self) -> Needs:
        """Return the statistics that the method, the report and Z read; the patch embedding is not refitted."""
        return {name: needs - {"sensitive_second"} for name, needs in super().needs().items()}


def table_site(model: nn.Module) -> TableSite | None:
    """Describe the position embedding; None where the model has none that is known."""
    try:
        return family_of(model).positions(model)
    except UnknownWholeError:
        return None


@UNITS.register("positions")
@dataclass(frozen=True)
class PositionUnit(Unit[TableDecomposition, Factors]):
    """Describe the position embedding, whose only part, under its name, is its rank."""

    site: TableSite

    methods: ClassVar[Registry[type[TableDecomposition]]] = TABLES
    ahead: ClassVar[bool] = True

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer at whose output the loss's gradient is seen."""
        return (self.site.after,)

    @property
    def work(self) -> float:
        return cubic_work(Site(self.name, self.site.tokens, self.site.width, bias=False))

    @classmethod
    def prepare(cls, model: nn.Module) -> None:
        site = table_site(model)
        if site is not None:
            replace_module(model, site.name, Positions.of(part(model, site.name)))

    @classmethod
    def find(cls, model: nn.Module, method: TableDecomposition, settings: Settings, sites: str) -> "list[PositionUnit]":
        """Find the position embedding, where ``prepare`` has made a module of it."""
        site = table_site(model)
        ready = site is not None and isinstance(dict(model.named_modules()).get(site.name), Positions)
        return [cls(site, method, settings)] if site is not None and ready else []

    def needs(self) -> Needs:
        return {self.site.after.name: self.method.needs}

    def report_needs(self) -> Needs:
        """Return nothing: the error is that of the table, whatever the images."""
        return {}

    def curves(self) -> list[ErrorCurve]:
        """Return the curve of its rank. The product is computed for each image."""
        rows, width, step = self.site.tokens, self.site.width, self.settings.rank_multiple
        loss = torch.zeros(min(rows, width) + 1) if self.parts is None else self.found.loss.cpu()
        return [ErrorCurve(self.name, loss, Cost(rows + width, rows * width), Cost(rows * width), multiple=step)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Factors]:
        return {self.name: self.method(self.table(model), moments[self.site.after.name])}

    def table(self, model: nn.Module) -> Tensor:
        """Return a model's table, (t, n), float64."""
        return as_float64(part(model, self.name)())[0]

    def cut(self, ranks: Ranks) -> Folded:
        rank = ranks[self.name]
        u, v = self.found.cut(len(self.found.loss) - 1 if rank is None else rank)
        return Folded(Positions.product(u, v, part(self.model, self.name).rows))

    def entry(self, cut: Folded | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the table's entry of the report: the error is relative to the table's energy."""
        site, table = self.site, self.table(self.model)
        error = float((table - self.table(compressed)).square().sum() / table.square().sum().clamp_min(1e-300))
        rank = None if cut is None else ranks[site.name]
        details: dict[str, Any] = {
            "ridge": self.found.ridge,
            "objective": None if rank is None else float(self.found.loss[rank]),
        }
        parameters = parameter_count(compressed.get_submodule(site.name))
        return layer_entry(site.name, (site.tokens, site.width), rank, parameters, [error, error], details)
