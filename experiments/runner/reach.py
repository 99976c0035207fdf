"""Count models without memory for their weights: how small a row is to be, and whether its recipe gets there."""

import functools
import json
from typing import TYPE_CHECKING

from experiments.jobs.job import Job
from experiments.tables.rows import Row
from lowrank_vit.records.budgets import OutOfReachError
from lowrank_vit.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn


class Reach:
    """Remember how far recipes reach. A check takes a tenth of a second; a lesser reduction needs none."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}  # reduction within reach, by model, recipe and cost

    def exceeded(self, job: Job) -> str | None:
        """Return how far the job's recipe reaches, where no choice of sizes reaches its reduction; None where one does."""
        if job.recipe is None or job.measure is not None:
            return None
        import timm

        import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
        from lowrank_vit import check_budget

        if not timm.is_model(job.model.partition(".")[0]):  # it is refused when it is loaded
            return None
        key = json.dumps([job.model, job.recipe, job.as_json()["changes"], job.cost], sort_keys=True)
        if 0 < job.reduction <= self._largest.get(key, 0.0):
            return None
        try:
            check_budget(blank(job.model), job.recipe_used(), job.budget)
        except OutOfReachError as error:
            return f"out of reach: on this model its recipe reaches from {error.reach}"
        except InputError as error:
            return str(error)
        self._largest[key] = job.reduction
        return None


def share_aimed_at(row: Row) -> float:
    """Return the share of the target's parameters to aim at: other than 1 where the paper prints another size."""
    if row.target is None or row.target_params is None:
        return 1.0
    return row.target_params / _count(row.target)


@functools.cache
def size_reduction(model: str, target: str, share: float = 1.0) -> float:
    """Return the share of ``model``'s parameters to remove to get ``share`` of those of ``target`` (timm's names)."""
    dense, small = _count(model), _count(target)
    if small >= dense:
        raise InputError(f"{target} has {small:,} parameters, {model} only {dense:,}: there is nothing to remove")
    return 1 - share * small / dense


@functools.cache
def blank(model: str) -> "nn.Module":
    """Build a model, by timm's name, on no device."""
    import timm
    import torch

    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)

    with torch.device("meta"):
        network: nn.Module = timm.create_model(model)
    return network


def _count(model: str) -> int:
    from lowrank_vit.modules.counting import parameter_count

    return parameter_count(blank(model))
