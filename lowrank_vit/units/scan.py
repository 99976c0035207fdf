"""The scan of a mixer: all channels, or none."""

from __future__ import annotations

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
from lowrank_vit.units import GROUPS, PLAIN, Ranks, Settings, tokens_of_an_image


@GROUPS.register("scan")
@dataclass(frozen=True)
class ScanGroup:
    """Describe one scan. Its only unit, under the scan's name, has the sizes 1, which is the skip alone, and dense.

    ``linears``: the layers before and behind it; ``parameters``, ``products``: of the whole scan, the latter the
    multiply-accumulates of a token.
    """

    revision: ClassVar[int] = 1

    name: str
    linears: tuple[Site, Site]
    inner: int
    parameters: int
    products: int
    method: ScanDecomposition
    settings: Settings = PLAIN

    methods: ClassVar[Registry[type[ScanDecomposition]]] = SCANS
    work: ClassVar[float] = 1.0

    @classmethod
    def find(cls, model: nn.Module, method: ScanDecomposition, settings: Settings, sites: str) -> list[ScanGroup]:
        """Find the scans that are whole."""
        groups = []
        for name, mixer in mixers(model).items():
            scan = mixer.scan
            if type(scan) is Scan:
                first, last = (
                    described_linear(f"{name}.{each}", getattr(mixer, each)) for each in ("in_proj", "out_proj")
                )
                products = scan.x_proj_weight.numel() + scan.dt_projs_weight.numel()
                numbers = scan.inner, parameter_count(scan), products
                groups.append(cls(f"{name}.scan", (first, last), *numbers, method, settings))
        return groups

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the method reads, of the layers that it reads them of."""
        return {site.name: names for site, names in zip(self.linears, self.method.needs, strict=True)}

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return the statistic of what is lost: its second moment."""
        return {self.linears[0].name: frozenset({"scan_change"})}

    def curve(self, directions: Directions, tokens: int) -> ErrorCurve:
        """Return the loss and cost of leaving the scan out, with ``tokens`` of an image."""
        kept, dense = Cost(self.inner, tokens * self.inner), Cost(self.parameters, tokens * self.products)
        return directions.curve(self.name, UnitCosts(1, unit=kept, dense=dense), 1)

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without a loss."""
        blank = Directions(torch.zeros(1, dtype=torch.long), torch.zeros(2))
        return [self.curve(blank, tokens.get(self.linears[-1].name, 0))]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Directions]:
        """Predict what leaving it out costs."""
        weight = dense_weight(model, self.linears[-1])
        return {self.name: self.method(weight, *(moments[site.name] for site in self.linears))}

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Directions],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownScan:
        """Return the scan with its predicted loss."""
        first = self.linears[0].name
        return KnownScan(self, model, parts[self.name], moments[first], None if unseen is None else unseen[first])


@dataclass(frozen=True)
class ScanCut:
    """Hold what replaces a scan that is left out; there is no residual to fit a Z to."""

    module: nn.Module
    residual: None = None

    def fold(self) -> nn.Module:
        """Return the scan's replacement."""
        return self.module


@dataclass(frozen=True)
class KnownScan:
    """Hold a scan with its predicted loss."""

    group: ScanGroup
    model: nn.Module
    directions: Directions
    moments: Moments  # of the layer before it
    unseen: Moments | None
    cap: None = None

    def curves(self) -> list[ErrorCurve]:
        """Return the only curve."""
        return [self.group.curve(self.directions, tokens_of_an_image(self.moments))]

    def probe_rank(self, unit: str) -> int:
        """Return the only size."""
        return 1

    def cut(self, ranks: Ranks) -> ScanCut:
        """Leave the scan out, or keep it at the size None."""
        scan = self.model.get_submodule(self.group.name)
        assert isinstance(scan, Scan)
        dim = self.group.linears[-1].out_features
        return ScanCut(scan if ranks[self.group.name] is None else SmallScan.of(scan, dim, LEFT_OUT))

    def error(self, moments: Moments) -> float:
        """Return ``E||e W||^2 / E||x W||^2``; x: the output layer's input, e: what it no longer gets."""
        weight = dense_weight(self.model, self.group.linears[-1])
        lost, whole = ((weight * (moments.mean(name) @ weight)).sum() for name in ("scan_change", "scan_whole"))
        return float(lost / whole)

    def entry(self, cut: ScanCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the scan's entry of the report."""
        group, rank = self.group, ranks[self.group.name]
        seen, unseen = (
            None if moments is None else self.error(moments) if cut is not None else 0.0
            for moments in (self.moments, self.unseen)
        )
        assert seen is not None
        return {
            "name": group.name,
            "in_features": group.inner,
            "out_features": group.inner,
            "rank": None if cut is None else rank,
            "z": None,
            "params": parameter_count(compressed.get_submodule(group.name)),
            "relative_error": seen,
            "relative_error_held_out": unseen,
            "details": {
                "dense_params": group.parameters,
                "scan": "whole" if cut is None else "left out",
                "scan_predicted_loss": float(self.directions.loss[1]) if cut is not None else 0.0,
            },
        }
