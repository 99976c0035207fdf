"""Measure for figure 3 the attention projections' error, with Z and with the same budget spent on rank.

Every layer keeps the same share of its weight's parameters, Z's among them. The error is the paper's (3) and (5): the
mean over images of ``||X_i W' - X_i W||_F^2 / ||X_i W||_F^2``, on calibration images and on unseen ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import BATCH, statistics_passes
from experiments.measures.layers import DIGITS, block_of, factors_by, image_counts, seen_and_unseen
from lowrank_vit import Compensation, Hardware, Recipe, Solution, dense_weight, find_sites, solve
from lowrank_vit.data import ImageData
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site

SITES = r"(^|\.)blocks\.\d+\.attn\.proj$"
EXACT = "whitened_normalised"  # the exact minimiser of this very error
NEEDS = {"representative", "input_second", "normalised_input_second"}


@dataclass(frozen=True)
class Approximation:
    """Hold ``W'`` of a layer, (n, d), and the parameters that its factors hold, Z's included."""

    weight: Tensor
    parameters: int


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure errors and parameters by method and block; the recipe says how Z is found beside its closed form."""
    recipe, sites = job.recipe_used(), find_sites(model, SITES)
    z = recipe.compensation
    assert z is not None, f"recipe {recipe.name} has no Z to measure"
    base = recipe.record()["decomposition"]
    ledger.tell("statistics of the attention projections")
    seen, unseen = seen_and_unseen(model, sites, NEEDS, {"normalised_input_second"}, data, job.seed)
    weights = {site.name: dense_weight(model, site) for site in sites}
    factors = {method: factors_by(method, model, sites, seen) for method in ("svd", base, EXACT)}
    before = {site.name: cut(factors[base][site.name], ranks(site, job.reduction, z)[1]) for site in sites}
    approximations = {"before": before}
    for name, method in (("svd", "svd"), ("rank", base), ("exact", EXACT)):
        by_site = factors[method]
        approximations[name] = {site.name: cut(by_site[site.name], ranks(site, job.reduction, z)[0]) for site in sites}
    residuals = {name: weights[name] - approximation.weight for name, approximation in before.items()}
    gradient = {} if recipe.solver == "closed_form" else {"gradient": recipe.solver}
    for name, solver in {"closed_form": "closed_form", **gradient}.items():
        ledger.tell(f"Z by {solver}")
        solutions = solutions_by(solver, recipe, z, residuals, seen, model, data, job.seed)
        approximations[name] = {site: with_z(before[site], solution) for site, solution in solutions.items()}
    return {
        "images": image_counts(seen, unseen),
        "kept": 1 - job.reduction,
        "z": {"kind": z.kind, **{name: recipe.record()[name] for name in ("budget", "solver", "optimizer", "steps")}},
        "blocks": [block_of(site) for site in sites],
        "methods": {name: errors(by_site, weights, seen, unseen) for name, by_site in approximations.items()},
    }


def ranks(site: Site, reduction: float, z: Compensation) -> tuple[int, int]:
    """Return the rank that the budget buys without Z, and the rank that is left with Z; at least 1."""
    n, d = site.in_features, site.out_features
    whole = max(2, int((1 - reduction) * site.parameters / (n + d)))
    return whole, max(1, whole - -(-z.parameter_count(n, d) // (n + d)))


def cut(factors: Factors, rank: int) -> Approximation:
    """Return the approximation of the first ``rank`` directions, or of all where the statistics cap them."""
    u, v = factors.cut(rank)
    return Approximation(u @ v.T, u.numel() + v.numel())


def with_z(before: Approximation, solution: Solution) -> Approximation:
    """Return ``U V^T + Z``."""
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
    """Solve for Z of every layer, from the calibration images."""
    moments = {name: seen[name].sums["normalised_input_second"] / seen[name].images for name in residuals}
    steps: dict[str, Any] = {"steps": recipe.steps, "optimizer": recipe.optimizer, "seed": seed}
    if solver != "minibatch":
        return solve(z, residuals, moments, solver, **steps)
    from lowrank_vit import compensate_minibatch

    accelerator = "gpu" if next(model.parameters()).is_cuda else "cpu"
    options = {"batch_size": BATCH, "hardware": Hardware(accelerator=accelerator), "progress": False, **steps}
    return compensate_minibatch(model, z, residuals, moments, data.calibration_tensor(), **options)


def errors(
    approximations: Mapping[str, Approximation],
    weights: Mapping[str, Tensor],
    seen: Mapping[str, Moments],
    unseen: Mapping[str, Moments],
) -> dict[str, list[float]]:
    """Return parameters and both errors of every layer."""
    result: dict[str, list[float]] = {"params": [item.parameters for item in approximations.values()]}
    for images, moments in (("calibration", seen), ("unseen", unseen)):
        metrics = {
            name: output_metric(weights[name], moments[name], centred=False, normalised=True) for name in weights
        }
        result[images] = [
            round(metrics[name].relative_error(item.weight), DIGITS) for name, item in approximations.items()
        ]
    return result


MEASURES.register("compensation")(Measure(measure, statistics_passes, ("decomposition.svd", f"decomposition.{EXACT}")))
