"""What is known of a model before a size is chosen, layer by layer; any reduction follows from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import provenance, report
from lowrank_vit.allocate import ALLOCATORS
from lowrank_vit.compensate import Compensation
from lowrank_vit.compensate.solve import Solution, solve
from lowrank_vit.fold import CutLayer, fold
from lowrank_vit.metric import OutputMetric, output_metric
from lowrank_vit.parallel import layout
from lowrank_vit.phases import Phases, shared
from lowrank_vit.progress import Stopwatch
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import ErrorCurve, Factors, LayerReport, Moments, RankPlan, Site
from lowrank_vit.sites import get_linear, replace_module
from lowrank_vit.steps import (
    Images,
    budget_for,
    compensation_of,
    cubic_cost,
    dense_weight,
)


@dataclass(frozen=True, kw_only=True)
class BaseAnalysis:
    """What is known of a model whatever its units are, and what every report says."""

    model: nn.Module
    recipe: Recipe
    sites: Sequence[Any]
    images: Images
    moments: Mapping[str, Moments]
    held_out: Mapping[str, Moments] | None
    curves: list[ErrorCurve]
    device: torch.device
    seed: int
    watch: Stopwatch
    progress: bool
    phases: Phases
    chosen: bool = False  # by the user: the sites

    @cached_property
    def size(self) -> tuple[int, int | None]:
        """The dense model's parameters and multiply-accumulates."""
        return report.model_size(self.model)

    def _finish(
        self, compressed: nn.Module, plan: RankPlan, layers: Sequence[LayerReport], **entries: Any
    ) -> dict[str, Any]:
        """The report, which is attached to the model, too; ``entries``: those of the recipe's kind."""
        whole = {
            "format": report.FORMAT,
            "model": report.architecture(self.model),
            "recipe": self.recipe.name,
            "recipe_fields": asdict(self.recipe),
            "protocol": "training-free",
            **report.size_report(self.model, compressed, self.size),
            "layers": report.as_json(layers),
            "overfit": report.overfit_entry(layers),
            "left_dense": report.left_dense_entry(self.model, [site.name for site in self.sites], chosen=self.chosen),
            **entries,
            "trajectory": list(plan.trajectory),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.watch.seconds.items()},
            "peak_memory_bytes": provenance.peak_memory(self.device),
            "provenance": provenance.record(self.device, self.seed, self.images.record),
        }
        compressed.compression_report = whole  # type: ignore[assignment]  # plain data, so that save() finds it
        return whole


@dataclass(frozen=True, kw_only=True)
class Analysis(BaseAnalysis):
    """All that is known of a model before a size is chosen: statistics, all directions of all layers, error curves."""

    sites: Sequence[Site]
    factors: Mapping[str, Factors]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The dense weights by site, (n, d), float64."""
        return {site.name: dense_weight(self.model, site) for site in self.sites}

    @cached_property
    def metrics(self) -> list[dict[str, OutputMetric]]:
        """What every layer's error is measured by, on the seen and on the unseen images: the same for all sizes."""
        kinds = [self.moments] if self.held_out is None else [self.moments, self.held_out]
        return [{name: self._metric(name, own[name]) for name in self.weights} for own in kinds]

    def _metric(self, name: str, moments: Moments) -> OutputMetric:
        """Where the bias takes up the mean of what is lost, what is left is counted about that mean."""
        about = self.moments[name].mean("input_sum") if self.recipe.bias_correction else None
        return output_metric(self.weights[name], moments, centred=False, about=about)

    @cached_property
    def _errors(self) -> list[dict[str, list[float]]]:
        """The errors of every layer at all ranks that an allocator may choose, without Z, as of ``metrics``."""
        directions = {}
        for curve in self.curves:
            own = self.factors[curve.name]
            u, v = own.cut(max(curve.ranks, default=0))
            directions[curve.name] = replace(own, u=u, v=v)
        return [
            {name: metric.error_curve(directions[name]).tolist() for name, metric in kind.items()}
            for kind in self.metrics
        ]

    def plan(self, reduction: float) -> RankPlan:
        """The ranks at which the whole model has lost ``reduction`` of its parameters, met to within one rank.

        Raises ``InputError`` for a reduction that no choice of ranks can reach.
        """
        budget = budget_for(self.model, self.recipe, self.sites, reduction)
        with self.watch("allocate"):
            return ALLOCATORS.get(self.recipe.allocator)()(self.curves, budget)

    def compress(self, reduction: float) -> tuple[nn.Module, dict[str, Any]]:
        """A compressed copy of the model, and its report (attached to it as ``compression_report``, too)."""
        plan = self.plan(reduction)
        layers, solutions = self._cut(plan)
        compressed = copy.deepcopy(self.model)
        with self.watch("fold"):
            for name, layer in layers.items():
                replace_module(compressed, name, fold(layer, get_linear(self.model, layer.site)))
        with self.watch("errors"):
            seen, *rest = self._relative_errors(layers, solutions)
        entries = report.layer_reports(self.sites, layers, self.factors, seen, rest[0] if rest else None)
        compensation = report.compensation_entry(self.recipe, solutions)
        return compressed, self._finish(compressed, plan, entries, compensation=compensation)

    def _relative_errors(
        self, layers: Mapping[str, CutLayer], solutions: Mapping[str, Solution]
    ) -> list[dict[str, float]]:
        """``E||y - y^||^2 / E||x W||^2`` of every compressed layer on the seen and on the unseen images."""
        if not solutions:
            return [{name: own[name][layer.rank] for name, layer in layers.items()} for own in self._errors]
        whole = {
            name: layer.u @ layer.v.T + (0 if layer.correction is None else solutions[name].dense().to(layer.u))
            for name, layer in layers.items()
        }
        return [{name: own[name].relative_error(w) for name, w in whole.items()} for own in self.metrics]

    def _cut(self, plan: RankPlan) -> tuple[dict[str, CutLayer], Mapping[str, Solution]]:
        """The factors at their ranks, with Z and the shift of the bias; what was found for Z."""
        ranks = {site: rank for site in self.sites if (rank := plan.ranks[site.name]) is not None}
        factors = {site.name: self.factors[site.name].cut(rank) for site, rank in ranks.items()}
        solutions, least = self._compensate(factors, self.phases.of(dict(plan.ranks)))
        layers = {}
        for site, rank in ranks.items():
            (u, v), z = factors[site.name], solutions.get(site.name)
            correction: nn.Module | None = None
            entry: dict[str, float | str] | None = None
            if z is not None:
                entry, joined = report.z_entry(z, least[site.name]), z.factors()
                if joined is None:
                    correction = z.module()
                else:
                    u, v = torch.cat([u, joined[0].to(u)], 1), torch.cat([v, joined[1].to(v)], 1)
            shift = None
            if self.recipe.bias_correction:
                mean = self.moments[site.name].mean("input_sum")
                shift = mean @ self.weights[site.name] - (mean @ u) @ v.T
                shift = shift if z is None or correction is None else shift - mean @ z.dense().to(u)
            layers[site.name] = CutLayer(site, rank, u, v, correction, entry, shift)
        return layers, solutions

    def _compensate(
        self, factors: Mapping[str, tuple[Tensor, Tensor]], phases: Phases
    ) -> tuple[Mapping[str, Solution], dict[str, float]]:
        """Z of every layer by the recipe's solver, and the least loss that the closed form reaches there."""
        method = compensation_of(self.recipe)
        if method is None or not factors:
            return {}, {}
        residuals = {name: self.weights[name] - u @ v.T for name, (u, v) in factors.items()}
        moments = {
            name: self.moments[name].sums["normalised_input_second"] / self.moments[name].images for name in residuals
        }
        costs = {site.name: cubic_cost(site) for site in self.sites if site.name in residuals}

        def closed_form() -> dict[str, Solution]:
            def work(names: Sequence[str]) -> dict[str, Solution]:
                return solve(method, {name: residuals[name] for name in names}, moments, progress=self.progress)

            return shared(costs, work, self.device)

        if self.recipe.solver == "closed_form":
            with self.watch("compensate"):
                found: Mapping[str, Solution] = phases("compensate", closed_form)
            best = found
        else:
            with self.watch("compensate"):
                found = phases("compensate", lambda: self._descend(method, residuals, moments, costs, phases))
            with self.watch("closed_form"):
                best = phases("closed_form", closed_form)
        return found, {name: own.loss_after for name, own in best.items()}

    def _descend(
        self,
        method: Compensation,
        residuals: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        costs: Mapping[str, float],
        phases: Phases,
    ) -> Mapping[str, Solution]:
        """Z of every layer by one of the gradient solvers."""
        options: dict[str, Any] = {"steps": self.recipe.steps, "seed": self.seed, "progress": self.progress}
        if self.recipe.solver != "minibatch":

            def work(names: Sequence[str]) -> dict[str, Solution]:
                own = {name: residuals[name] for name in names}
                return solve(method, own, moments, solver=self.recipe.solver, **options)

            return shared(costs, work, self.device)
        from lowrank_vit.compensate.module import compensate_minibatch  # Lightning takes seconds to import

        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        options |= {"accelerator": accelerator, "checkpoint_dir": phases.place("minibatch")}
        options["devices"], options["num_nodes"] = layout()
        return compensate_minibatch(self.model, method, residuals, moments, self.images.tensor(), **options)
