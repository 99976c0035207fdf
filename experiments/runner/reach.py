"""Count models without memory for their weights: how small a row is to be, and whether its recipe gets there."""

import json

import timm

from experiments.jobs.job import Job
from experiments.measures.layers import blank
from lowrank_vit import check_budget
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.budgets import OutOfReachError
from lowrank_vit.runtime.errors import InputError


def out_of_reach(job: Job, reached: dict[str, float]) -> str | None:
    """Return how far the job's recipe reaches, where no choice of sizes reaches its reduction; None where one does.

    ``reached``: the largest reduction within reach, by model, recipe and cost. A check takes a tenth of a second; a lesser
    reduction needs none.
    """
    if job.recipe is None or job.measure is not None or not timm.is_model(job.model.partition(".")[0]):
        return None  # an unknown model is refused when it is loaded
    key = json.dumps([job.model, job.recipe, job.as_json()["changes"], job.cost], sort_keys=True)
    if 0 < job.reduction <= reached.get(key, 0.0):
        return None
    try:
        check_budget(blank(job.model), job.recipe_used(), job.budget)
    except OutOfReachError as error:
        return f"out of reach: on this model its recipe reaches from {error.reach}"
    except InputError as error:
        return str(error)
    reached[key] = job.reduction
    return None


def size_reduction(model: str, target: str, share: float = 1.0) -> float:
    """Return the share of ``model``'s parameters to remove to get ``share`` of those of ``target`` (timm's names)."""
    dense, small = parameter_count(blank(model)), parameter_count(blank(target))
    if small >= dense:
        raise InputError(f"{target} has {small:,} parameters, {model} only {dense:,}: there is nothing to remove")
    return 1 - share * small / dense
