"""The rank of a single linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import dense_weight, find_sites
from lowrank_vit.linalg.metric import OutputMetric, output_metric
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.fold import CutLayer, fold
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.compensate.solve import Solution
from lowrank_vit.stages.decompose import DECOMPOSITIONS, Decomposition
from lowrank_vit.units import GROUPS, PLAIN, Ranks, Settings, cubic_work, tokens_of_an_image
from lowrank_vit.units.mixtures import mixed_rank


@GROUPS.register("decomposition")
@dataclass(frozen=True)
class LinearGroup:
    """Describe one linear layer, whose only unit, under the layer's name, is its rank."""

    revision: ClassVar[int] = 1

    site: Site
    method: Decomposition
    settings: Settings = PLAIN

    methods: ClassVar[Registry[type[Decomposition]]] = DECOMPOSITIONS

    @property
    def name(self) -> str:
        """Return the layer's name."""
        return self.site.name

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer itself."""
        return (self.site,)

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        return cubic_work(self.site)

    @classmethod
    def find(cls, model: nn.Module, method: Decomposition, settings: Settings, sites: str) -> list[LinearGroup]:
        """Find the linear layers whose names match ``sites``."""
        return [cls(site, method, settings) for site in find_sites(model, sites)]

    def needs(self) -> dict[str, frozenset[str]]:
        """Return the statistics that the method, the report, Z and the refit read."""
        z = {"input_second", "normalised_input_second"} if self.settings.compensation is not None else set()
        refit = {"sensitive_second"} if self.settings.refit else set()
        return {self.name: frozenset(self.method.needs | {"second"} | z | refit)}

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return the second moment of the side that the method reads."""
        needs = self.needs()[self.name]
        return {self.name: frozenset({"input_second" if "input_second" in needs else "second"})}

    def curve(self, loss: Tensor, tokens: int = 0) -> ErrorCurve:
        """Return the curve for an allocator; ``loss``: the decomposition's loss at every rank, (k + 1,)."""
        n, d, settings = self.site.in_features, self.site.out_features, self.settings
        z = 0 if settings.compensation is None else settings.compensation.parameter_count(n, d)
        bias = d if settings.bias_correction and not self.site.bias else 0
        unit, dense = Cost(n + d, tokens * (n + d)), Cost(n * d, tokens * n * d)
        fixed = Cost(z + bias, tokens * z)
        saved = tuple(rank**2 for rank in range(len(loss))) if settings.pivoted else ()
        return ErrorCurve(self.name, loss, unit, dense, fixed, settings.rank_multiple, self.site.full_rank, saved=saved)

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curve without losses."""
        return [self.curve(torch.zeros(self.site.full_rank + 1), tokens.get(self.name, 0))]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, Factors]:
        """Decompose the layer's weight."""
        return {self.name: self.method(dense_weight(model, self.site), moments[self.name])}

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, Factors],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownLinear:
        """Return the layer with its factors."""
        return KnownLinear(
            self, model, parts[self.name], moments[self.name], None if unseen is None else unseen[self.name]
        )


@dataclass(frozen=True)
class KnownLinear:
    """Hold a linear layer with all its directions."""

    group: LinearGroup
    model: nn.Module
    factors: Factors
    moments: Moments
    unseen: Moments | None

    @cached_property
    def weight(self) -> Tensor:
        """Return the dense weight, (n, d), float64."""
        return dense_weight(self.model, self.group.site)

    @property
    def cap(self) -> int | None:
        """Return the rank above which no direction helps, where the statistics cap it below the full one."""
        cap = self.factors.cap
        return cap if cap is not None and cap < self.group.site.full_rank else None

    @cached_property
    def curve(self) -> ErrorCurve:
        """Return the loss and cost of every rank."""
        return self.group.curve(self.factors.loss.cpu(), tokens_of_an_image(self.moments))

    @cached_property
    def metrics(self) -> list[OutputMetric]:
        """Return the metrics of errors on the seen and on the unseen images: the same for all sizes.

        Where the bias takes up the mean of what is lost, errors are counted about that mean.
        """
        about = self.moments.mean("input_sum") if self.group.settings.bias_correction else None
        kinds = [self.moments] if self.unseen is None else [self.moments, self.unseen]
        return [output_metric(self.weight, moments, centred=False, about=about) for moments in kinds]

    @cached_property
    def errors(self) -> list[list[float]]:
        """Return the errors without Z, by ``metrics``, at all ranks that an allocator may choose."""
        u, v = self.factors.cut(max(self.curve.ranks, default=0))
        directions = replace(self.factors, u=u, v=v)
        return [metric.error_curve(directions).tolist() for metric in self.metrics]

    def curves(self) -> list[ErrorCurve]:
        """Return the only curve."""
        return [self.curve]

    def mixture(self, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the layer's parameters, given the shares of several sizes."""
        return mixed_rank(self, sizes)

    def probe_rank(self, unit: str) -> int:
        """Return the middle of the ranks."""
        ranks = self.curve.ranks
        return ranks[len(ranks) // 2] if ranks else self.group.site.full_rank

    def cut(self, ranks: Ranks) -> LinearCut:
        """Cut the factors at a rank."""
        rank = ranks[self.group.name]
        return LinearCut(self, self.group.site.full_rank if rank is None else rank)

    def entry(self, cut: LinearCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the layer's entry of the report."""
        site, factors = self.group.site, self.factors
        errors = [0.0] * len(self.metrics) if cut is None else cut.relative_errors()
        rank = None if cut is None else cut.rank
        return {
            "name": site.name,
            "in_features": site.in_features,
            "out_features": site.out_features,
            "rank": rank,
            "z": None if cut is None or cut.z is None else z_entry(cut.z, cut.least),
            "params": site.parameters if cut is None else cut.layer.parameters,
            "relative_error": errors[0],
            "relative_error_held_out": errors[1] if len(errors) > 1 else None,
            "details": {
                "ridge": factors.ridge,
                "cap": factors.cap,
                # the loss by the decomposition's own measure, before Z: compare it with relative_error
                "objective": None if rank is None else float(factors.loss[min(rank, len(factors.loss) - 1)]),
            },
        }


@dataclass(frozen=True)
class LinearCut:
    """Hold a linear layer at its rank, perhaps with Z; ``least``: the loss with Z in closed form."""

    known: KnownLinear
    rank: int
    z: Solution | None = None
    least: float = 0.0

    @cached_property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Return ``U, V`` at the rank, without Z."""
        return self.known.factors.cut(self.rank)

    @property
    def residual(self) -> Tensor:
        """Return ``W - U V^T``, (n, d)."""
        u, v = self.pair
        return self.known.weight - u @ v.T

    @cached_property
    def layer(self) -> CutLayer:
        """Return the factors with Z joined, and the shift of the bias."""
        (u, v), z, known = self.pair, self.z, self.known
        correction: nn.Module | None = None
        if z is not None:
            joined = z.factors()
            if joined is None:
                correction = z.module()
            else:
                u, v = torch.cat([u, joined[0].to(u)], 1), torch.cat([v, joined[1].to(v)], 1)
        shift = None
        if known.group.settings.bias_correction:
            mean = known.moments.mean("input_sum")
            shift = mean @ known.weight - (mean @ u) @ v.T
            shift = shift if z is None or correction is None else shift - mean @ z.dense().to(u)
        return CutLayer(known.group.site, self.rank, u, v, correction, shift)

    def fold(self) -> LowRankLinear:
        """Make the smaller layer."""
        return fold(self.layer, get_linear(self.known.model, self.known.group.site))

    def relative_errors(self) -> list[float]:
        """Return ``E||y - y^||^2 / E||x W||^2`` on the seen and on the unseen images."""
        if self.z is None:
            return [errors[self.rank] for errors in self.known.errors]
        layer = self.layer
        whole = layer.u @ layer.v.T + (0 if layer.correction is None else self.z.dense().to(layer.u))
        return [metric.relative_error(whole) for metric in self.known.metrics]


def z_entry(solution: Solution, least: float) -> Any:
    """Describe the Z of a layer. Losses are (10) on the calibration set; ``least``: that of the closed form."""
    return {
        "kind": solution.kind,
        "params": solution.parameters,
        "loss_before": solution.loss_before,
        "loss": solution.loss_after,
        "loss_closed_form": least,
    }
