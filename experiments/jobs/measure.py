"""Find what a figure measures by its name, and run a job that measures instead of compressing.

A measurement is a function ``(model, data, job, ledger)`` to a dictionary of plain values; it tells the ledger how it
goes, and a long one keeps there what it has, so that it can be interrupted. The model stays as it is.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from lowrank_vit import Recipe
from lowrank_vit.data import ImageData
from lowrank_vit.modules import counting as cost
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import resolve_device
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.runtime.registry import Registry

BACKWARD = 2.0  # a backward pass, in forward passes
MEASURED = 18  # forward passes of measuring losses: three parts of each of a dozen blocks, from that block on
SENSED = 24  # of measuring curves, for each size: four layers of each of a dozen blocks, from that block on
GATES = 10  # epochs of gates alone, which go through the dense model, too
BATCH = 64  # of the minibatch solver


@dataclass(frozen=True)
class Measure:
    """Pair what measures (``run``) with the forward passes of one image that a job takes.

    ``parts``: of the engine, and methods, that it uses beside the job's; ``recipe``: makes the one that it uses in place
    of the job's. ``methods``: revisions of further methods, by the job. ``revision`` is raised when what it measures changes.
    """

    run: Callable[[nn.Module, ImageData, Job, Ledger], dict[str, Any]]
    forward_passes: Callable[[Job], float]
    parts: tuple[str, ...] = ()
    recipe: Callable[[], Recipe] | None = None
    methods: Callable[[Job], Mapping[str, int]] = lambda job: {}
    revision: int = 1


MEASURES: Registry[Measure] = Registry("measure", "experiments.measures")


def measured(job: Job, model: nn.Module, data: ImageData, device: str, ledger: Ledger) -> dict[str, Any]:
    """Measure what the job names; returns the measured part of its result, with the numbers under ``"measured"``.

    Of a measure that makes a smaller model, "params" and "hits" go where other jobs have them.
    Raises ``InputError`` for an unknown measure, and where several processes were started for it.
    """
    assert job.measure is not None
    if rank_and_world()[1] > 1:
        raise InputError("a figure is measured by one process: start it without torchrun or srun")
    where, measure, start = resolve_device(device), MEASURES.get(job.measure), time.perf_counter()
    numbers = measure.run(model.to(where).eval(), data, job, ledger)
    size = cost.parameter_count(model)
    return {
        "measured": numbers,
        "params": {"dense": size, "compressed": numbers.pop("params", size)},
        "hits": numbers.pop("hits", None),
        "top1": {},
        "seconds": {"total": round(time.perf_counter() - start, 3)},
        "provenance": provenance.record(where, job.seed, data.calibration_record),
    }


def images_of(job: Job) -> tuple[int, int]:
    """Count the images of the training split, and those that one evaluation takes."""
    train, validation = (int(count) for count in job.images.split("+"))
    return train, min(job.limit or validation, validation)


def compression_passes(job: Job) -> float:
    """Count the passes of calibration, measured losses, a search, the refit, gates, and the compensation."""
    if job.recipe is None:
        return job.calibration_samples
    recipe = job.recipe_used()
    refit = 2 * job.calibration_samples if recipe.refit else 0  # through the dense and the smaller model
    calibration = job.calibration_samples * (1 + BACKWARD * recipe.needs_gradient)
    solving = BATCH * recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    measuring = 0 if recipe.measured is None else recipe.measured.rounds * MEASURED * recipe.measured.images
    sensing = 0 if recipe.sense is None else recipe.sense.points * SENSED * recipe.sense.images
    searching = 0 if recipe.search is None else recipe.search.passes(job.calibration_samples)
    gates = 0 if recipe.gradual is None or recipe.labelled else GATES * (2 + BACKWARD) * job.calibration_samples
    return calibration + refit + solving + measuring + sensing + searching + gates


def statistics_passes(job: Job) -> float:
    """Count the passes of a compression, or of its statistics, and of the same on the held-out images."""
    return compression_passes(job) + job.held_out_samples


def comparison_passes(job: Job) -> float:
    """Count the passes of a compression, and of both models on the held-out images and on the evaluation's."""
    return compression_passes(job) + 2 * (job.held_out_samples + images_of(job)[1])
