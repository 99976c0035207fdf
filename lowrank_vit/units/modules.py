"""What attention modules and MLPs share: outputs made from a subset of inputs, and the entry of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, survey
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.linalg.mixtures import Mixture
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.scatter_output import ScatterOutput
from lowrank_vit.records.costs import UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions, InputSubset, Logits, WholeHeads
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import AttentionSite, MlpSite, PoolSite, Site
from lowrank_vit.units import PLAIN, Ranks, Settings, cubic_work, tokens_of_an_image


def whole_modules(model: nn.Module, settings: Settings) -> list[AttentionSite | MlpSite]:
    """Find attention modules and MLPs. Raises ``InputError`` for one that cannot be taken, unless ``partial``."""
    return survey(model)[0] if settings.partial else family_of(model).modules(model)


def attention_sites(model: nn.Module, settings: Settings, *, pools: bool) -> list[AttentionSite]:
    """Find the attention modules of ``whole_modules``; ``pools``: attention pooling, too."""
    sites = [site for site in whole_modules(model, settings) if isinstance(site, AttentionSite)]
    return sites if pools else [site for site in sites if not isinstance(site, PoolSite)]


def unit_name(site: AttentionSite | MlpSite, unit: str) -> str:
    """Return the name of a unit in a plan."""
    return f"{site.name}.{unit}"


def blank_directions(costs: UnitCosts) -> Directions:
    """Return directions in their own order, without losses."""
    return Directions(torch.arange(costs.count), torch.zeros(costs.count + 1))


@dataclass(frozen=True)
class ModuleGroup:
    """Describe the units of an attention module or an MLP, before any image is seen."""

    site: Any
    method: Any
    settings: Settings = PLAIN

    @property
    def name(self) -> str:
        """Return the module's name."""
        name: str = self.site.name
        return name

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layers where statistics are collected; the last one makes the output."""
        linears: tuple[Site, ...] = self.site.linears
        return linears

    @property
    def work(self) -> float:
        """Estimate the decomposition's work, up to a constant factor."""
        return cubic_work(self.linears[-1])

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return the cost of each unit that the method reduces; ``tokens``: of an image."""
        costs: dict[str, UnitCosts] = self.site.costs(tokens)
        return costs

    def curves(self, units: Mapping[str, Directions], tokens: int) -> list[ErrorCurve]:
        """Return one curve for every unit, for an allocator."""
        step, pivoted = self.settings.rank_multiple, self.settings.pivoted
        return [
            units[unit_name(self.site, unit)].curve(unit_name(self.site, unit), costs, step, pivoted)
            for unit, costs in self.costs(tokens).items()
        ]

    def report_needs(self) -> dict[str, frozenset[str]]:
        """Return the second moment of the output layer's inputs."""
        return {self.linears[-1].name: frozenset({"input_second"})}

    def blank_curves(self, tokens: Mapping[str, int]) -> list[ErrorCurve]:
        """Return the curves without losses."""
        units = {unit_name(self.site, unit): blank_directions(costs) for unit, costs in self.costs().items()}
        return self.curves(units, tokens.get(self.linears[0].name, 0))

    def known(
        self,
        model: nn.Module,
        parts: Mapping[str, InputSubset | Logits | WholeHeads],
        moments: Mapping[str, Moments],
        unseen: Mapping[str, Moments] | None,
    ) -> KnownModule:
        """Return the module with its directions."""
        output, first = self.linears[-1].name, moments[self.linears[0].name]
        tokens = tokens_of_an_image(first)
        return KnownModule(self, model, parts, moments[output], None if unseen is None else unseen[output], tokens)


@dataclass(frozen=True)
class OutputApproximation:
    """Hold what a smaller module keeps of the inputs that the dense output layer sees: ``(x - offset) columns``."""

    columns: Tensor  # shape: (n, s)
    offset: Tensor  # shape: (n,), the values' bias, which the smaller attention does not add


@dataclass(frozen=True)
class ModuleCut:
    """Hold a module at its sizes; there is no residual to fit a Z to."""

    module: nn.Module
    kept: OutputApproximation
    residual: None = None

    def fold(self) -> nn.Module:
        """Return the smaller module."""
        return self.module


@dataclass(frozen=True)
class KnownModule:
    """Hold an attention module or an MLP with all its directions."""

    group: Any
    model: nn.Module
    parts: Mapping[str, InputSubset | Logits | WholeHeads]
    moments: Moments  # of the output layer
    unseen: Moments | None
    tokens: int  # of an image, which the module sees
    cap: int | None = None

    @property
    def site(self) -> AttentionSite | MlpSite:
        """Return the module's description."""
        site: AttentionSite | MlpSite = self.group.site
        return site

    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every size of each unit."""
        units = {name: part.units for name, part in self.parts.items()}
        curves: list[ErrorCurve] = self.group.curves(units, self.tokens)
        return curves

    def probe_rank(self, unit: str) -> int:
        """Return half the number of directions."""
        directions = self.parts[unit].units
        return len(directions.order) // 2 // directions.multiple * directions.multiple

    def mixture(self, unit: str, sizes: Sequence[int | None]) -> Mixture:
        """Return the dense module's parameters, given the shares of several sizes of a unit."""
        mixture: Mixture = self.group.mixture(self, unit, sizes)
        return mixture

    def cut(self, ranks: Ranks) -> ModuleCut:
        """Cut at the sizes of all units."""
        cut: ModuleCut = self.group.cut(self, ranks)
        return cut

    def entry(self, cut: ModuleCut | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        """Make the module's entry of the report.

        The error is that of the compressed output layer for the inputs of the dense model: what the values, or the hidden
        units, lose, but not what queries and keys lose.
        """
        site, output = self.site, self.site.linears[-1]
        (weight, bias), (approximation, shift) = (dense_linear(model, output) for model in (self.model, compressed))
        layer = compressed.get_submodule(output.name)
        if isinstance(layer, ScatterOutput):
            approximation, shift = layer.spread(approximation), layer.spread(shift)
        if cut is not None:
            approximation = cut.kept.columns @ approximation
            shift = shift - cut.kept.offset @ approximation
        seen, unseen = (
            None
            if moments is None
            else output_metric(weight, moments, centred=False).relative_error(approximation, shift - bias)
            for moments in (self.moments, self.unseen)
        )
        assert seen is not None
        whole, params = (parameter_count(model.get_submodule(site.name)) for model in (self.model, compressed))
        last = unit_name(site, list(self.group.costs())[-1])
        return {
            "name": site.name,
            "in_features": site.in_features,
            "out_features": output.out_features,
            "rank": None if cut is None else ranks[last],
            "z": None,
            "params": params,
            "relative_error": seen,
            "relative_error_held_out": unseen,
            "details": {"dense_params": whole, **self._details(ranks)},
        }

    def _details(self, ranks: Ranks) -> dict[str, float | int | None]:
        details: dict[str, float | int | None] = {}
        for unit, costs in self.group.costs().items():
            name = unit_name(self.site, unit)
            part, count = self.parts[name], ranks[name]
            details[unit] = costs.count if count is None else count
            details[f"{unit}_of"] = costs.count
            details[f"{unit}_predicted_loss"] = 0.0 if count is None else float(part.units.loss[count])
            if isinstance(part, InputSubset):
                details["ridge"] = part.ridge
        return details
