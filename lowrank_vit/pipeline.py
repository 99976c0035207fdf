"""The pipeline: calibrate, decompose, allocate, compensate, fold. The stages know nothing of each other; this file does.

``analyse`` does, once, all that does not depend on the size asked for; ``Analysis.compress`` then gives any reduction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import provenance, report
from lowrank_vit.allocate import ALLOCATORS
from lowrank_vit.blocks import BlockAnalysis, analyse_blocks, block_budget
from lowrank_vit.compensate import Compensation
from lowrank_vit.compensate.solve import Solution, solve
from lowrank_vit.errors import InputError
from lowrank_vit.fold import CutLayer, fold
from lowrank_vit.metric import OutputMetric, output_metric
from lowrank_vit.parallel import layout
from lowrank_vit.phases import Phases, identity, shared
from lowrank_vit.progress import Stopwatch
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.records import ErrorCurve, Factors, Moments, RankPlan, Site
from lowrank_vit.sites import BLOCK_LINEARS, call_every_layer, find_sites, get_linear, replace_module
from lowrank_vit.steps import (
    Batches,
    Images,
    budget_for,
    collect,
    compensation_of,
    cubic_cost,
    decompose,
    dense_weight,
    error_curves,
    resolve_device,
    statistics_needed,
)


@dataclass(frozen=True)
class Analysis:
    """All that is known of a model before a size is chosen: statistics, all directions of all layers, error curves."""

    model: nn.Module
    recipe: Recipe
    sites: list[Site]
    images: Images
    moments: Mapping[str, Moments]
    held_out: Mapping[str, Moments] | None
    factors: Mapping[str, Factors]
    curves: list[ErrorCurve]
    device: torch.device
    seed: int
    watch: Stopwatch
    progress: bool
    phases: Phases
    chosen: bool = False  # by the user: the sites

    @cached_property
    def metrics(self) -> list[dict[str, OutputMetric]]:
        """What every layer's error is measured by, on the seen and on the unseen images: the same for all sizes."""
        return [
            {s.name: output_metric(dense_weight(self.model, s), own[s.name], centred=False) for s in self.sites}
            for own in (self.moments, self.held_out)
            if own is not None
        ]

    @cached_property
    def size(self) -> tuple[int, int | None]:
        """The dense model's parameters and multiply-accumulates."""
        return report.model_size(self.model)

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
        weights = {site.name: dense_weight(self.model, site) for site in self.sites}
        layers, solutions = self._cut(plan, weights)
        compressed = copy.deepcopy(self.model)
        with self.watch("fold"):
            for name, layer in layers.items():
                replace_module(compressed, name, fold(layer, get_linear(self.model, layer.site)))
        entries = self._report(compressed, plan, layers, solutions)
        compressed.compression_report = entries  # type: ignore[assignment]  # plain data, so that save() finds it
        return compressed, entries

    def _cut(self, plan: RankPlan, weights: Mapping[str, Tensor]) -> tuple[dict[str, CutLayer], Mapping[str, Solution]]:
        """The factors at their ranks, with Z and the shift of the bias; what was found for Z."""
        ranks = {site: rank for site in self.sites if (rank := plan.ranks[site.name]) is not None}
        factors = {site.name: self.factors[site.name].cut(rank) for site, rank in ranks.items()}
        residuals = {name: weights[name] - u @ v.T for name, (u, v) in factors.items()}
        solutions, least = self._compensate(residuals, self.phases.of(dict(plan.ranks)))
        layers = {}
        for site, rank in ranks.items():
            (u, v), error, z = factors[site.name], residuals[site.name], solutions.get(site.name)
            correction: nn.Module | None = None
            entry: dict[str, float | str] | None = None
            if z is not None:
                error, entry = error - z.dense().to(error), report.z_entry(z, least[site.name])
                joined = z.factors()
                if joined is None:
                    correction = z.module()
                else:
                    u, v = torch.cat([u, joined[0].to(u)], 1), torch.cat([v, joined[1].to(v)], 1)
            shift = self.moments[site.name].mean("input_sum") @ error if self.recipe.bias_correction else None
            layers[site.name] = CutLayer(site, rank, u, v, correction, entry, shift, weights[site.name] - error)
        return layers, solutions

    def _compensate(
        self, residuals: Mapping[str, Tensor], phases: Phases
    ) -> tuple[Mapping[str, Solution], dict[str, float]]:
        """Z of every layer by the recipe's solver, and the least loss that the closed form reaches there."""
        method = compensation_of(self.recipe)
        if method is None or not residuals:
            return {}, {}
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

    def _report(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        layers: Mapping[str, CutLayer],
        solutions: Mapping[str, Solution],
    ) -> dict[str, Any]:
        seen, *rest = (report.relative_errors(layers, metrics) for metrics in self.metrics)
        unseen = rest[0] if rest else None
        return {
            "format": report.FORMAT,
            "model": report.architecture(self.model),
            "recipe": self.recipe.name,
            "recipe_fields": asdict(self.recipe),
            "protocol": "training-free",
            **report.size_report(self.model, compressed, self.size),
            "layers": report.as_json(report.layer_reports(self.sites, layers, self.factors, seen, unseen)),
            "left_dense": report.left_dense_entry(self.model, [site.name for site in self.sites], chosen=self.chosen),
            "compensation": report.compensation_entry(self.recipe, solutions),
            "trajectory": list(plan.trajectory),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.watch.seconds.items()},
            "peak_memory_bytes": provenance.peak_memory(self.device),
            "provenance": provenance.record(self.device, self.seed, self.images.record),
        }


def analyse(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "exact",
    *,
    held_out: Batches | Images | None = None,
    moments: Mapping[str, Moments] | None = None,
    sites: str = BLOCK_LINEARS,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    checkpoint_dir: str | Path | None = None,
) -> Analysis | BlockAnalysis:
    """Collect the statistics that ``recipe`` needs and decompose every site; the model itself is not changed.

    ``held_out``: images that calibration does not see, for the report's error on unseen images; labels are not read.
    ``moments``: what ``calibrate`` collected on the same images before; then they are not gone through again.
    ``checkpoint_dir``: each phase ends in a file there, by which a later call for the same goes on where an interrupted
    one stood, to the same bits; remove the folder when the model is saved. Of several processes (``torch.distributed``)
    each has its share of the batches, and all get the whole result.
    Raises ``InputError`` with one line for whatever cannot be done.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    seen = calibration if isinstance(calibration, Images) else Images(calibration)
    unseen = held_out if isinstance(held_out, Images) or held_out is None else Images(held_out)
    where, watch = resolve_device(device), Stopwatch()
    model, folder = copy.deepcopy(model), None if checkpoint_dir is None else Path(checkpoint_dir)
    model = call_every_layer(model).to(where).eval()
    if recipe.halves:
        _all_blocks(sites)
        return analyse_blocks(model, seen, recipe, unseen, moments, where, seed, watch, progress, folder)
    chosen = find_sites(model, sites)
    needs = statistics_needed(recipe)
    with watch("calibrate"):
        moments = moments or collect(model, chosen, needs, seen, seed, progress)
    unseen_moments = None
    if unseen is not None:
        whole = frozenset({"input_second" if "input_second" in needs else "second"})
        with watch("held_out"):
            unseen_moments = collect(model, chosen, whole, unseen, seed, progress)
    key = identity(model, moments, asdict(recipe), seed) if folder else ""
    phases = Phases(folder, key, where)
    with watch("decompose"):
        factors = phases("decompose", lambda: decompose(model, recipe, chosen, moments, progress))
    curves = error_curves(recipe, chosen, {name: own.loss for name, own in factors.items()})
    return Analysis(
        model,
        recipe,
        chosen,
        seen,
        moments,
        unseen_moments,
        factors,
        curves,
        where,
        seed,
        watch,
        progress,
        phases,
        sites != BLOCK_LINEARS,
    )


def check_reduction(model: nn.Module, recipe: Recipe, reduction: float, sites: str = BLOCK_LINEARS) -> None:
    """Raise ``InputError``, before an image is seen, for a reduction that no choice of ranks can reach."""
    if recipe.halves:
        _all_blocks(sites)
        block_budget(model, recipe, reduction)
    else:
        budget_for(model, recipe, find_sites(model, sites), reduction)


def _all_blocks(sites: str) -> None:
    if sites != BLOCK_LINEARS:
        raise InputError("this recipe takes whole attention modules and MLPs, all of them: leave out --sites")


def sweep(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe,
    reductions: Sequence[float],
    **options: Any,
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """``compress`` for each of several reductions, from one calibration and one decomposition: they are paid for once.

    The models are made one after the other, as they are asked for. Every reduction is checked before anything long
    begins. The stages' seconds in a report are those since the beginning of the sweep.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    for reduction in reductions:
        check_reduction(model, recipe, reduction, options.get("sites", BLOCK_LINEARS))
    analysis = analyse(model, calibration, recipe, **options)
    return (analysis.compress(reduction) for reduction in reductions)


def compress(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "exact",
    reduction: float = 0.5,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Compress a timm vision transformer so that the whole model loses ``reduction`` of its parameters.

    calibration: batches of images (B, C, H, W), or tuples that begin with them; labels are never read.
    options: those of ``analyse``. Returns the compressed model, on the device that was used, and its report.
    Raises ``InputError`` with one line for whatever cannot be done. ``sweep`` makes several sizes at little more cost.
    """
    return next(sweep(model, calibration, recipe, [reduction], **options))
