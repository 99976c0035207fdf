"""The pipeline: calibrate, decompose, allocate, compensate, fold. The stages know nothing of each other; this file does.

``analyse`` does, once, all that does not depend on the size asked for; ``Analysis.compress`` then gives any reduction.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from lowrank_vit import cache, cost, provenance, report
from lowrank_vit.allocate import ALLOCATORS, least_cost
from lowrank_vit.calibrate import calibrate
from lowrank_vit.compensate import COMPENSATIONS, Compensation
from lowrank_vit.compensate.solve import Solution, solve
from lowrank_vit.decompose import DECOMPOSITIONS
from lowrank_vit.errors import InputError
from lowrank_vit.fold import CutLayer, fold
from lowrank_vit.recipes import Recipe, get_recipe
from lowrank_vit.records import ErrorCurve, Factors, Moments, RankPlan, Site, as_float64
from lowrank_vit.sites import BLOCK_LINEARS, find_sites, get_linear, replace_module

logger = logging.getLogger(__name__)
Batches = Iterable[Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Images:
    """A set of images to collect statistics on: batches, and what identifies them where they have a name.

    ``fingerprint``: a hash of their content; with it the statistics are cached on disk. ``record``: what a report
    says of them.
    """

    batches: Batches
    fingerprint: str | None = None
    record: dict[str, Any] | None = None

    def tensor(self) -> Tensor:
        """All images in memory, (N, C, H, W)."""
        return torch.cat([item if isinstance(item, Tensor) else item[0] for item in self.batches])


@dataclass
class Stopwatch:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


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

    def plan(self, reduction: float) -> RankPlan:
        """The ranks at which the whole model has lost ``reduction`` of its parameters, met to within one rank.

        Raises ``InputError`` for a reduction that no choice of ranks can reach.
        """
        dense = cost.parameter_count(self.model)
        fixed = dense - sum(site.parameters for site in self.sites)
        reachable = 1 - (fixed + least_cost(self.curves)) / dense
        if not 0 < reduction <= reachable:
            raise InputError(
                f"reduction {reduction:g} is out of reach: recipe {self.recipe.name!r} on these layers "
                f"reaches from 0 (not included) to {int(reachable * 1e4) / 1e4:g}"
            )
        budget = int(dense * (1 - reduction)) - fixed
        with self.watch("allocate"):
            return ALLOCATORS.get(self.recipe.allocator)()(self.curves, budget)

    def compress(self, reduction: float) -> tuple[nn.Module, dict[str, Any]]:
        """A compressed copy of the model, and its report (attached to it as ``compression_report``, too)."""
        plan = self.plan(reduction)
        weights = {site.name: dense_weight(self.model, site) for site in self.sites}
        layers = self._cut(plan, weights)
        compressed = copy.deepcopy(self.model)
        with self.watch("fold"):
            for name, layer in layers.items():
                replace_module(compressed, name, fold(layer, get_linear(self.model, layer.site)))
        compressed.compression_report = self._report(compressed, plan, layers, weights)
        return compressed, compressed.compression_report

    def _cut(self, plan: RankPlan, weights: Mapping[str, Tensor]) -> dict[str, CutLayer]:
        """The factors at their ranks, with Z and the shift of the bias."""
        ranks = {site: rank for site in self.sites if (rank := plan.ranks[site.name]) is not None}
        factors = {site.name: self.factors[site.name].cut(rank) for site, rank in ranks.items()}
        residuals = {name: weights[name] - u @ v.T for name, (u, v) in factors.items()}
        with self.watch("compensate"):
            solutions = self._compensate(residuals)
        layers = {}
        for site, rank in ranks.items():
            (u, v), error, z = factors[site.name], residuals[site.name], solutions.get(site.name)
            correction, entry = None, None
            if z is not None:
                error, entry = error - z.dense().to(error), {"kind": z.kind, "params": z.parameters}
                joined = z.factors()
                if joined is None:
                    correction = z.module()
                else:
                    u, v = torch.cat([u, joined[0].to(u)], 1), torch.cat([v, joined[1].to(v)], 1)
            shift = self.moments[site.name].mean("input_sum") @ error if self.recipe.bias_correction else None
            layers[site.name] = CutLayer(site, rank, u, v, correction, entry, shift, weights[site.name] - error)
        return layers

    def _compensate(self, residuals: Mapping[str, Tensor]) -> Mapping[str, Solution]:
        method = compensation_of(self.recipe)
        if method is None or not residuals:
            return {}
        moments = {
            name: self.moments[name].sums["normalised_input_second"] / self.moments[name].images for name in residuals
        }
        options: dict[str, Any] = {"steps": self.recipe.steps, "seed": self.seed, "progress": self.progress}
        if self.recipe.solver != "minibatch":
            return solve(method, residuals, moments, solver=self.recipe.solver, **options)
        from lowrank_vit.compensate.module import compensate_minibatch  # Lightning takes seconds to import

        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        return compensate_minibatch(
            self.model, method, residuals, moments, self.images.tensor(), accelerator=accelerator, **options
        )

    def _report(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        layers: Mapping[str, CutLayer],
        weights: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        seen = report.relative_errors(layers, weights, self.moments)
        unseen = None if self.held_out is None else report.relative_errors(layers, weights, self.held_out)
        return {
            "format": report.FORMAT,
            "model": report.architecture(self.model),
            "recipe": self.recipe.name,
            "recipe_fields": asdict(self.recipe),
            "protocol": "training-free",
            **report.size_report(self.model, compressed),
            "layers": report.as_json(report.layer_reports(self.sites, layers, self.factors, seen, unseen)),
            "trajectory": list(plan.trajectory),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.watch.seconds.items()},
            "peak_memory_bytes": provenance.peak_memory(self.device),
            "provenance": provenance.record(self.device, self.seed, self.images.record),
        }


def dense_weight(model: nn.Module, site: Site) -> Tensor:
    """The dense weight of a site, (n, d), float64."""
    return as_float64(get_linear(model, site).weight).T


def compensation_of(recipe: Recipe) -> Compensation | None:
    """The recipe's Z with its budget; ``None`` where it has none."""
    if recipe.compensation is None:
        return None
    return COMPENSATIONS.get(recipe.compensation)(budget=recipe.budget)


def statistics_needed(recipe: Recipe) -> frozenset[str]:
    """All statistics that the recipe's methods, and the report's errors, read."""
    needs = DECOMPOSITIONS.get(recipe.decomposition).needs | {"second"}
    if recipe.compensation is not None:
        needs |= {"input_second", "normalised_input_second"}
    return frozenset(needs)


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``InputError`` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used ({reason}): try --device cpu or auto") from None


def collect(
    model: nn.Module, sites: Sequence[Site], needs: frozenset[str], images: Images, seed: int, progress: bool
) -> dict[str, Moments]:
    """The moments of a set of images: from the disk where they were collected before, on the model's device."""
    device = next(model.parameters()).device

    def compute() -> dict[str, Moments]:
        return calibrate(model, sites, needs, images.batches, seed=seed, device=device, progress=progress)

    if images.fingerprint is None:
        return compute()
    key = cache.moments_key(model, images.fingerprint, [site.name for site in sites], needs, seed)
    found = cache.cached_moments(key, compute)
    return {name: replace(own, sums={k: v.to(device) for k, v in own.sums.items()}) for name, own in found.items()}


def decompose(
    model: nn.Module, recipe: Recipe, sites: Sequence[Site], moments: Mapping[str, Moments], progress: bool
) -> dict[str, Factors]:
    """All directions of every site. Raises ``InputError`` that names the layer whose statistics cannot be used."""
    method, factors = DECOMPOSITIONS.get(recipe.decomposition)(), {}
    for site in track(sites, "decompose", disable=not progress, transient=True):
        try:
            own = method(dense_weight(model, site), moments[site.name])
        except (torch.linalg.LinAlgError, ValueError) as error:
            raise InputError(
                f"layer {site.name!r} cannot be decomposed by {recipe.decomposition!r}: {error}"
            ) from error
        if own.ridge > 0:
            logger.info("layer %s: the statistics took a relative ridge of %g", site.name, own.ridge)
        factors[site.name] = own
    caps = {own.cap for site in sites if (own := factors[site.name]).cap is not None and own.cap < site.full_rank}
    if caps:
        logger.warning("the mean image caps the rank of some layers at %s (see the report)", sorted(caps))
    return factors


def error_curves(recipe: Recipe, sites: Sequence[Site], factors: Mapping[str, Factors]) -> list[ErrorCurve]:
    """What an allocator chooses from: the decomposition's own loss at every rank, and what each rank costs."""
    z, curves = compensation_of(recipe), []
    for site in sites:
        n, d = site.in_features, site.out_features
        extra = (0 if z is None else z.parameter_count(n, d)) + (d if recipe.bias_correction and not site.bias else 0)
        curves.append(ErrorCurve(site.name, factors[site.name].loss.cpu(), n + d, n * d, extra, recipe.rank_multiple))
    return curves


def analyse(
    model: nn.Module,
    calibration: Batches | Images,
    recipe: str | Recipe = "exact",
    *,
    held_out: Batches | Images | None = None,
    sites: str = BLOCK_LINEARS,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Analysis:
    """Collect the statistics that ``recipe`` needs and decompose every site; the model itself is not changed.

    ``held_out``: images that calibration does not see, for the report's error on unseen images; labels are not read.
    Raises ``InputError`` with one line for whatever cannot be done.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    seen = calibration if isinstance(calibration, Images) else Images(calibration)
    unseen = held_out if isinstance(held_out, Images) or held_out is None else Images(held_out)
    where, watch = resolve_device(device), Stopwatch()
    model = copy.deepcopy(model).to(where).eval()
    chosen = find_sites(model, sites)
    needs = statistics_needed(recipe)
    with watch("calibrate"):
        moments = collect(model, chosen, needs, seen, seed, progress)
    unseen_moments = None
    if unseen is not None:
        whole = frozenset({"input_second" if "input_second" in needs else "second"})
        with watch("held_out"):
            unseen_moments = collect(model, chosen, whole, unseen, seed, progress)
    with watch("decompose"):
        factors = decompose(model, recipe, chosen, moments, progress)
    curves = error_curves(recipe, chosen, factors)
    return Analysis(model, recipe, chosen, seen, moments, unseen_moments, factors, curves, where, seed, watch, progress)


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
    Raises ``InputError`` with one line for whatever cannot be done.
    """
    return analyse(model, calibration, recipe, **options).compress(reduction)
