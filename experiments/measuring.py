"""A job that measures instead of compressing: from the dense model to its result."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.measures import get_measure
from experiments.registry import Job
from lowrank_vit import cost, provenance
from lowrank_vit.data import ImageData
from lowrank_vit.errors import InputError
from lowrank_vit.parallel import rank_and_world
from lowrank_vit.steps import resolve_device

if TYPE_CHECKING:
    from experiments.ledger import Ledger


def measured(job: Job, model: nn.Module, data: ImageData, device: str, ledger: Ledger) -> dict[str, Any]:
    """The measured part of the result; what the job names as its measure is under ``"measured"``.

    Raises ``InputError`` for an unknown measure, and where several processes were started for it.
    """
    assert job.measure is not None
    if rank_and_world()[1] > 1:
        raise InputError("a figure is measured by one process: start it without torchrun or srun")
    where, measure, start = resolve_device(device), get_measure(job.measure), time.perf_counter()
    found = measure.run(model.to(where).eval(), data, job, ledger)
    size = cost.parameter_count(model)
    return {
        "measured": found,
        "params": {"dense": size, "compressed": size},
        "top1": {},
        "seconds": {"total": round(time.perf_counter() - start, 3)},
        "layers": [],
        "threads": torch.get_num_threads(),
        "provenance": provenance.record(where, job.seed, data.calibration_record),
    }
