"""The scan of a mixer: all channels, or none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lowrank_vit.architectures.linears import dense_weight
from lowrank_vit.architectures.parts import described_linear
from lowrank_vit.architectures.vmamba import mixers
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.scans import LEFT_OUT, Scan, SmallScan
from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.decompose import SCANS, ScanDecomposition
from lowrank_vit.units.base import UNITS, Folded, Needs, Ranks, Settings, Unit, layer_entry


@dataclass(frozen=True)
class ScanSite:
    """Describe a whole scan of ``inner`` channels, with the layers before and behind it.

    ``products``: the multiply-accumulates of a token.
    """

    name: str
    linears: tuple[Site, Site]
    inner: int
    parameters: int
    products: int


@UNITS.register("scan")
@dataclass(frozen=True)
class ScanUnit(Unit[ScanDecomposition, Directions]):
    """Describe one scan. Its only part, under the scan's name, has the sizes 1, which is the skip alone, and dense."""

    site: ScanSite

    methods: ClassVar[Registry[type[ScanDecomposition]]] = SCANS
    work: ClassVar[float] = 1.0

    @property
    def linears(self) -> tuple[Site, ...]:
        return self.site.linears

    @classmethod
    def find(cls, model: nn.Module, method: ScanDecomposition, settings: Settings, sites: str) -> "list[ScanUnit]":
        units = []
        for name, mixer in mixers(model).items():
            scan = mixer.scan
            if type(scan) is Scan:
                first, last = (
                    described_linear(f"{name}.{each}", getattr(mixer, each)) for each in ("in_proj", "out_proj")
                )
                products = scan.x_proj_weight.numel() + scan.dt_projs_weight.numel()
                site = ScanSite(f"{name}.scan", (first, last), scan.inner, parameter_count(scan), products)
                units.append(cls(site, method, settings))
        return units

    def needs(self) -> Needs:
        """Return the statistics that the method reads, of the layers that it reads them of."""
        return {site.name: names for site, names in zip(self.linears, self.method.needs, strict=True)}

    def report_needs(self) -> Needs:
        """Return the statistic of what is lost: its second moment."""
        return {self.linears[0].name: frozenset({"scan_change"})}

    def curves(self) -> list[ErrorCurve]:
        site, count = self.site, self.tokens
        kept, dense = Cost(site.inner, count * site.inner), Cost(site.parameters, count * site.products)
        blank = Directions(torch.zeros(1, dtype=torch.long), torch.zeros(2))
        directions = blank if self.parts is None else self.found
        return [directions.curve(self.name, UnitCosts(1, unit=kept, dense=dense), 1)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Directions]:
        weight = dense_weight(model, self.linears[-1])
        return {self.name: self.method(weight, *(moments[site.name] for site in self.linears))}

    def cut(self, ranks: Ranks) -> Folded:
        scan = self.model.get_submodule(self.name)
        assert isinstance(scan, Scan)
        dim = self.linears[-1].out_features
        return Folded(scan if ranks[self.name] is None else SmallScan.of(scan, dim, LEFT_OUT))

    def error(self, moments: Moments) -> float:
        """Return ``E||e W||^2 / E||x W||^2``; x: the output layer's input, e: what it no longer gets."""
        weight = dense_weight(self.model, self.linears[-1])
        lost, whole = ((weight * (moments.mean(name) @ weight)).sum() for name in ("scan_change", "scan_whole"))
        return float(lost / whole)

    def entry(self, cut: Folded | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        site, rank = self.site, ranks[self.name]
        before = self.statistics(self.linears[0].name)
        errors = [0.0 if cut is None else self.error(moments) for moments in before]
        details = {
            "dense_params": site.parameters,
            "scan": "whole" if cut is None else "left out",
            "scan_predicted_loss": float(self.found.loss[1]) if cut is not None else 0.0,
        }
        parameters = parameter_count(compressed.get_submodule(site.name))
        shape = site.inner, site.inner
        return layer_entry(site.name, shape, None if cut is None else rank, parameters, errors, details)
