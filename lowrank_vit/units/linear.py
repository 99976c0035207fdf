"""The rank of a single linear layer, and the rows that stand beside a low-rank part of fixed rank."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import dense_linear, dense_weight, find_sites
from lowrank_vit.linalg.metric import OutputMetric, output_metric
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import CutLayer, fold
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Factors, SplitRows, SplitSite
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import ROW, Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.compensate.kinds.sparse import StructuredCorrection
from lowrank_vit.stages.compensate.solve import Solution
from lowrank_vit.stages.decompose import DECOMPOSITIONS, ROWS, Decomposition, RowChoice
from lowrank_vit.units.base import UNITS, Found, Method, Needs, Ranks, Settings, Unit, layer_entry
from lowrank_vit.units.modules import mixed_rank


@dataclass(frozen=True)
class LayerCut:
    """Hold a linear layer at a size; ``layer`` has what it is made of."""

    unit: LayerUnit[Any, Any]

    @property
    def layer(self) -> CutLayer:
        """Return the factors, what stands beside them, and the shift of the bias."""
        raise NotImplementedError

    def fold(self) -> LowRankLinear:
        return fold(self.layer, get_linear(self.unit.model, self.unit.site))

    def relative_errors(self) -> list[float]:
        """Return ``E||y - y^||^2 / E||x W||^2`` on the seen and on the unseen images."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerUnit(Unit[Method, Found]):
    """Describe one linear layer."""

    site: Site

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.site,)

    @classmethod
    def find(cls, model: nn.Module, method: Method, settings: Settings, sites: str) -> list[LayerUnit[Method, Found]]:
        return [cls(site, method, settings) for site in find_sites(model, sites)]

    @cached_property
    def mean(self) -> Tensor | None:
        """Return the mean input, (n,), where the bias takes up the mean of what is lost."""
        return self.moments[self.name].mean("input_sum") if self.settings.bias_correction else None

    @cached_property
    def weight(self) -> Tensor:
        """Return the dense weight, (n, d), float64."""
        return dense_weight(self.model, self.site)

    @cached_property
    def metrics(self) -> list[OutputMetric]:
        """Return the metrics of errors on the seen and on the unseen images: the same for all sizes.

        Where the bias takes up the mean of what is lost, errors are counted about that mean.
        """
        kinds = self.statistics(self.name)
        return [output_metric(self.weight, moments, centred=False, about=self.mean) for moments in kinds]

    def described(
        self, cut: LayerCut | None, rank: int | None, details: Mapping[str, Any], z: Any, compressed: nn.Module
    ) -> LayerEntry:
        site = self.site
        if cut is None:
            errors = [0.0] * len(self.metrics)
        elif self.settings.refit:
            errors = self._refitted(compressed.get_submodule(site.name))
        else:
            errors = cut.relative_errors()
        parameters = site.parameters if cut is None else cut.layer.parameters
        return layer_entry(site.name, (site.in_features, site.out_features), rank, parameters, errors, details, z)

    @torch.no_grad()
    def _refitted(self, layer: nn.Module) -> list[float]:
        """Return the errors, for the inputs of the dense model, of a layer that a refit may have changed."""
        weight, bias = dense_linear(self.model, self.site)
        layer = copy.deepcopy(layer).double()
        shift = layer(weight.new_zeros(1, len(weight)))[0]
        whole = layer(torch.eye(len(weight)).to(weight)) - shift
        return self.output_errors(self.name, weight, whole, shift - bias)


@dataclass(frozen=True)
class LinearCut(LayerCut):
    """Hold a linear layer at its rank, perhaps with Z; ``least``: the loss with Z in closed form."""

    unit: LinearUnit
    rank: int
    z: Solution | None = None
    least: float = 0.0

    @cached_property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Return ``U, V`` at the rank, without Z."""
        return self.unit.found.cut(self.rank)

    @property
    def residual(self) -> Tensor:
        """Return ``W - U V^T``, (n, d)."""
        u, v = self.pair
        return self.unit.weight - u @ v.T

    @cached_property
    def layer(self) -> CutLayer:
        """Return the factors with Z joined, and the shift of the bias."""
        (u, v), z, unit = self.pair, self.z, self.unit
        correction: nn.Module | None = None
        if z is not None:
            joined = z.factors()
            if joined is None:
                correction = z.module()
            else:
                u, v = torch.cat([u, joined[0].to(u)], 1), torch.cat([v, joined[1].to(v)], 1)
        shift = None
        if (mean := unit.mean) is not None:
            shift = mean @ unit.weight - (mean @ u) @ v.T
            shift = shift if z is None or correction is None else shift - mean @ z.dense().to(u)
        return CutLayer(unit.site, self.rank, u, v, correction, shift)

    def relative_errors(self) -> list[float]:
        if self.z is None:
            return [errors[self.rank] for errors in self.unit.errors]
        layer = self.layer
        whole = layer.u @ layer.v.T + (0 if layer.correction is None else self.z.dense().to(layer.u))
        return [metric.relative_error(whole) for metric in self.unit.metrics]


@UNITS.register("decomposition")
@dataclass(frozen=True)
class LinearUnit(LayerUnit[Decomposition, Factors]):
    """Describe one linear layer, whose only part, under the layer's name, is its rank."""

    methods: ClassVar[Registry[type[Decomposition]]] = DECOMPOSITIONS

    def needs(self) -> Needs:
        """Return the statistics that the method, the report, Z and the refit read."""
        z = {"input_second", "normalised_input_second"} if self.settings.compensation is not None else set()
        refit = {"sensitive_second"} if self.settings.refit else set()
        return {self.name: frozenset(self.method.needs | {"second"} | z | refit)}

    def report_needs(self) -> Needs:
        needs = self.needs()[self.name]
        return {self.name: frozenset({"input_second" if "input_second" in needs else "second"})}

    def curves(self) -> list[ErrorCurve]:
        return [self.curve]

    @cached_property
    def curve(self) -> ErrorCurve:
        n, d, settings, count = self.site.in_features, self.site.out_features, self.settings, self.tokens
        loss = torch.zeros(self.site.full_rank + 1) if self.parts is None else self.found.loss.cpu()
        z = 0 if settings.compensation is None else settings.compensation.parameter_count(n, d)
        bias = d if settings.bias_correction and not self.site.bias else 0
        unit, dense = Cost(n + d, count * (n + d)), Cost(n * d, count * n * d)
        fixed = Cost(z + bias, count * z)
        saved = tuple(rank**2 for rank in range(len(loss))) if settings.pivoted else ()
        return ErrorCurve(self.name, loss, unit, dense, fixed, settings.rank_multiple, self.site.full_rank, saved=saved)

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Factors]:
        return {self.name: self.method(dense_weight(model, self.site), moments[self.name])}

    @property
    def cap(self) -> int | None:
        cap = self.found.cap
        return cap if cap is not None and cap < self.site.full_rank else None

    @cached_property
    def errors(self) -> list[list[float]]:
        """Return the errors without Z, by ``metrics``, at all ranks that an allocator may choose."""
        u, v = self.found.cut(max(self.curve.ranks, default=0))
        directions = replace(self.found, u=u, v=v)
        return [metric.error_curve(directions).tolist() for metric in self.metrics]

    def mixture(self, part: str, sizes: Sequence[int | None]) -> Mixture:
        return mixed_rank(self.model, self.site, self.found, self.mean, sizes)

    def probe_rank(self, part: str) -> int:
        ranks = self.curve.ranks
        return ranks[len(ranks) // 2] if ranks else self.site.full_rank

    def cut(self, ranks: Ranks) -> LinearCut:
        rank = ranks[self.name]
        return LinearCut(self, self.site.full_rank if rank is None else rank)

    def entry(self, cut: LinearCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        factors, rank = self.found, None if cut is None else cut.rank
        details = {
            "ridge": factors.ridge,
            "cap": factors.cap,
            # the loss by the decomposition's own measure, before Z: compare it with relative_error
            "objective": None if rank is None else float(factors.loss[min(rank, len(factors.loss) - 1)]),
        }
        z = None if cut is None or cut.z is None else z_entry(cut.z, cut.least)
        return self.described(cut, rank, details, z, compressed)


def z_entry(solution: Solution, least: float) -> Any:
    """Describe the Z of a layer. Losses are (10) on the calibration set; ``least``: that of the closed form."""
    return {
        "kind": solution.kind,
        "params": solution.parameters,
        "loss_before": solution.loss_before,
        "loss": solution.loss_after,
        "loss_closed_form": least,
    }


@dataclass(frozen=True)
class RowCut(LayerCut):
    """Hold a linear layer with its low-rank part and some rows, (kept,), ascending."""

    unit: RowUnit
    kept: Tensor

    residual: ClassVar[Tensor | None] = None

    @cached_property
    def approximation(self) -> Tensor:
        """Return the smaller layer's weight, (n, d)."""
        whole = self.unit.found.u @ self.unit.found.v.T
        whole[:, self.kept] = self.unit.weight[:, self.kept]
        return whole

    @cached_property
    def layer(self) -> CutLayer:
        """Return the factors, the rows beside them, and the shift of the bias."""
        unit, site = self.unit, self.unit.site
        u, v = unit.found.u, unit.found.v
        rows = StructuredCorrection(site.in_features, site.out_features, "columns", len(self.kept))
        rows.values.data = (unit.weight[:, self.kept] - u @ v[self.kept].T).T.contiguous()
        rows.index = self.kept.int()
        shift = None if unit.mean is None else unit.mean @ (unit.weight - self.approximation)
        return CutLayer(site, unit.rank, u, v, rows, shift)

    def relative_errors(self) -> list[float]:
        return [metric.relative_error(self.approximation) for metric in self.unit.metrics]


@UNITS.register("rows")
@dataclass(frozen=True)
class RowUnit(LayerUnit[RowChoice, SplitRows]):
    """Describe one linear layer, whose only part is the rows beside its low-rank part, at least one."""

    methods: ClassVar[Registry[type[RowChoice]]] = ROWS

    @property
    def part(self) -> str:
        return f"{self.name}.{ROW}"

    @property
    def split(self) -> SplitSite:
        """Return the layer's site with the share of its low-rank part, which tells the costs."""
        return SplitSite(self.site, self.method.share)

    @property
    def rank(self) -> int:
        return self.split.rank

    def needs(self) -> Needs:
        return {self.name: self.method.needs | {"second"}}

    def report_needs(self) -> Needs:
        return {self.name: frozenset({"second"})}

    def curves(self) -> list[ErrorCurve]:
        loss = torch.zeros(self.site.out_features + 1) if self.parts is None else self.found.units.loss.cpu()
        row, fixed, dense = self.split.costs(self.tokens)
        bias = self.site.out_features if self.settings.bias_correction and not self.site.bias else 0
        return [ErrorCurve(self.part, loss, row, dense, fixed + Cost(bias), self.settings.rank_multiple)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, SplitRows]:
        return {self.part: self.method(dense_weight(model, self.site), self.rank, moments[self.name])}

    def cut(self, ranks: Ranks) -> RowCut:
        return RowCut(self, self.found.units.kept(ranks[self.part]))

    def entry(self, cut: RowCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        rank, rows = (None, None) if cut is None else (self.rank, len(cut.kept))
        return self.described(cut, rank, {ROW: rows}, None, compressed)
