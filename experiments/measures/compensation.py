"""Measure for figure 3 the attention projections' error, with Z and with the same budget spent on rank.

Every layer keeps the same share of its weight's parameters, Z's among them. The error is the paper's (3) and (5): the
mean over images of ``||X_i W' - X_i W||_F^2 / ||X_i W||_F^2``, on calibration images and on unseen ones.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import BATCH, MEASURES, Measure, statistics_passes
from experiments.measures.layers import DIGITS, block_of, factors_by, hardware_of, image_counts, statistics
from lowrank_vit import Compensation, compensate_minibatch, dense_weight, find_sites, solve
from lowrank_vit.data import ImageData
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site

SITES = r"(^|\.)blocks\.\d+\.attn\.proj$"
EXACT = "whitened_normalised"  # the exact minimiser of this very error
NEEDS = {"representative", "input_second", "normalised_input_second"}
Approximation = tuple[Tensor, int]  # ``W'`` of a layer, (n, d), and the parameters that its factors hold, Z's included


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure errors and parameters by method and block; the recipe says how Z is found beside its closed form."""
    recipe, sites = job.recipe_used(), find_sites(model, SITES)
    record, z = recipe.record(), recipe.compensation
    assert z is not None, f"recipe {recipe.name} has no Z to measure"
    base = record["decomposition"]
    ledger.tell("statistics of the attention projections")
    moments = statistics(model, sites, NEEDS, {"normalised_input_second"}, data, job.seed)
    seen = moments["calibration"]
    weights = {site.name: dense_weight(model, site) for site in sites}
    factors = {method: factors_by(method, model, sites, seen) for method in ("svd", base, EXACT)}
    rank = {site.name: ranks(site, job.reduction, z) for site in sites}
    methods = {
        name: {site: cut(factors[method][site], rank[site][with_z]) for site in rank}
        for name, method, with_z in (("before", base, 1), ("svd", "svd", 0), ("rank", base, 0), ("exact", EXACT, 0))
    }
    residuals = {site: weights[site] - weight for site, (weight, _) in methods["before"].items()}
    means = {name: seen[name].sums["normalised_input_second"] / seen[name].images for name in residuals}
    steps: dict[str, Any] = {"steps": recipe.steps, "optimizer": recipe.optimizer, "seed": job.seed}
    gradient = {} if recipe.solver == "closed_form" else {"gradient": recipe.solver}
    for name, solver in {"closed_form": "closed_form", **gradient}.items():
        ledger.tell(f"Z by {solver}")
        if solver == "minibatch":
            images, options = data.calibration_tensor(), {**steps, "hardware": hardware_of(model), "progress": False}
            solutions = compensate_minibatch(model, z, residuals, means, images, batch_size=BATCH, **options)
        else:
            solutions = solve(z, residuals, means, solver, **steps)
        methods[name] = {
            site: (weight + solutions[site].dense().to(weight), parameters + solutions[site].parameters)
            for site, (weight, parameters) in methods["before"].items()
        }
    return {
        "images": image_counts(moments),
        "kept": 1 - job.reduction,
        "z": {"kind": z.kind, **{name: record[name] for name in ("budget", "solver", "optimizer", "steps")}},
        "blocks": [block_of(site) for site in sites],
        "methods": {name: errors(by_site, weights, moments) for name, by_site in methods.items()},
    }


def ranks(site: Site, reduction: float, z: Compensation) -> tuple[int, int]:
    """Return the rank that the budget buys without Z, and the rank that is left with Z; at least 1."""
    n, d = site.in_features, site.out_features
    whole = max(2, int((1 - reduction) * site.parameters / (n + d)))
    return whole, max(1, whole - -(-z.parameter_count(n, d) // (n + d)))


def cut(factors: Factors, rank: int) -> Approximation:
    """Return the approximation of the first ``rank`` directions, or of all where the statistics cap them."""
    u, v = factors.cut(rank)
    return u @ v.T, u.numel() + v.numel()


def errors(
    approximations: Mapping[str, Approximation],
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Moments]],
) -> dict[str, list[float]]:
    """Return parameters and both errors of every layer."""
    result: dict[str, list[float]] = {"params": [parameters for _, parameters in approximations.values()]}
    for images, each in moments.items():
        metrics = {n: output_metric(weights[n], each[n], centred=False, normalised=True) for n in weights}
        relative = [metrics[name].relative_error(weight) for name, (weight, _) in approximations.items()]
        result[images] = [round(error, DIGITS) for error in relative]
    return result


MEASURES.register("compensation")(Measure(measure, statistics_passes, ("decomposition.svd", f"decomposition.{EXACT}")))
