"""Figure 3: the error at the output of the attention projections, with Z and with the same budget spent on rank.

Every layer keeps the same share of its weight's parameters, Z's among them. The error is the paper's (3) and (5): the
mean over images of ``||X_i W' - X_i W||_F^2 / ||X_i W||_F^2``, on calibration images and on unseen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from experiments.measures.layers import DIGITS, block_of, factors_by, image_counts, seen_and_unseen
from experiments.registry import Job
from lowrank_vit.compensate import Compensation
from lowrank_vit.compensate.solve import Solution, solve
from lowrank_vit.data import ImageData
from lowrank_vit.metric import output_metric
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import Factors, Moments, Site
from lowrank_vit.sites import find_sites
from lowrank_vit.steps import compensation_of, dense_weight

if TYPE_CHECKING:
    from experiments.ledger import Ledger

SITES = r"(^|\.)blocks\.\d+\.attn\.proj$"
EXACT = "whitened_normalised"  # the exact minimiser of this very error
NEEDS = {"representative", "input_second", "normalised_input_second"}
BATCH = 64  # of the minibatch solver, as in the paper


@dataclass(frozen=True)
class Approximation:
    """``W'`` of a layer, (n, d), and the parameters that its factors hold, Z's included."""

    weight: Tensor
    parameters: int


def forward_passes(job: Job) -> float:
    """The statistics, and the batches of the minibatch solver."""
    recipe = job.recipe_used()
    batches = BATCH * recipe.steps if recipe.solver == "minibatch" else 0
    return job.calibration_samples + job.held_out_samples + batches


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Errors and parameters by method, a number for each block; the recipe says how Z is found beside its closed form."""
    recipe, sites = job.recipe_used(), find_sites(model, SITES)
    z = compensation_of(recipe)
    assert z is not None, f"recipe {recipe.name} has no Z to measure"
    assert recipe.decomposition is not None
    ledger.tell("statistics of the attention projections")
    seen, unseen = seen_and_unseen(model, sites, NEEDS, {"normalised_input_second"}, data, job.seed)
    weights = {site.name: dense_weight(model, site) for site in sites}
    factors = {method: factors_by(method, model, sites, seen) for method in ("svd", recipe.decomposition, EXACT)}
    before = {
        site.name: cut(factors[recipe.decomposition][site.name], ranks(site, job.reduction, z)[1]) for site in sites
    }
    found = {"before": before}
    for name, method in (("svd", "svd"), ("rank", recipe.decomposition), ("exact", EXACT)):
        found[name] = {site.name: cut(factors[method][site.name], ranks(site, job.reduction, z)[0]) for site in sites}
    residuals = {name: weights[name] - own.weight for name, own in before.items()}
    gradient = {} if recipe.solver == "closed_form" else {"gradient": recipe.solver}
    for name, solver in {"closed_form": "closed_form", **gradient}.items():
        ledger.tell(f"Z by {solver}")
        solutions = solutions_by(solver, recipe, z, residuals, seen, model, data, job.seed)
        found[name] = {site: with_z(before[site], solution) for site, solution in solutions.items()}
    return {
        "images": image_counts(seen, unseen),
        "kept": 1 - job.reduction,
        "z": {"kind": z.kind, "budget": recipe.budget, "solver": recipe.solver, "steps": recipe.steps},
        "blocks": [block_of(site) for site in sites],
        "methods": {name: errors(own, weights, seen, unseen) for name, own in found.items()},
    }


def ranks(site: Site, reduction: float, z: Compensation) -> tuple[int, int]:
    """The rank that the budget buys without Z, and the one that is left beside Z; at least 1."""
    n, d = site.in_features, site.out_features
    whole = max(2, int((1 - reduction) * site.parameters / (n + d)))
    return whole, max(1, whole - -(-z.parameter_count(n, d) // (n + d)))


def cut(factors: Factors, rank: int) -> Approximation:
    """The approximation of the first ``rank`` directions, or of all where the statistics cap them."""
    u, v = factors.cut(rank)
    return Approximation(u @ v.T, u.numel() + v.numel())


def with_z(before: Approximation, solution: Solution) -> Approximation:
    """``U V^T + Z``."""
    return Approximation(before.weight + solution.dense().to(before.weight), before.parameters + solution.parameters)


def solutions_by(
    solver: str,
    recipe: Recipe,
    z: Compensation,
    residuals: Mapping[str, Tensor],
    seen: Mapping[str, Moments],
    model: nn.Module,
    data: ImageData,
    seed: int,
) -> Mapping[str, Solution]:
    """Z of every layer, from the calibration images."""
    moments = {name: seen[name].sums["normalised_input_second"] / seen[name].images for name in residuals}
    if solver != "minibatch":
        return solve(z, residuals, moments, solver=solver, steps=recipe.steps, seed=seed)
    from lowrank_vit.compensate.module import compensate_minibatch

    accelerator = "gpu" if next(model.parameters()).is_cuda else "cpu"
    options: dict[str, Any] = {"batch_size": BATCH, "accelerator": accelerator, "progress": False}
    return compensate_minibatch(
        model, z, residuals, moments, data.calibration_tensor(), steps=recipe.steps, seed=seed, **options
    )


def errors(
    found: Mapping[str, Approximation],
    weights: Mapping[str, Tensor],
    seen: Mapping[str, Moments],
    unseen: Mapping[str, Moments],
) -> dict[str, list[float]]:
    """Parameters and both errors of every layer."""
    result: dict[str, list[float]] = {"params": [own.parameters for own in found.values()]}
    for images, moments in (("calibration", seen), ("unseen", unseen)):
        metrics = {name: output_metric(weights[name], moments[name], centred=False, normalised=True) for name in found}
        result[images] = [round(metrics[name].relative_error(own.weight), DIGITS) for name, own in found.items()]
    return result
