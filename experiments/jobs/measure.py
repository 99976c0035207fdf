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
