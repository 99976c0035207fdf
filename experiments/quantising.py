"""Fewer bits for what another job has compressed: that job is run first, and shared by all numbers of bits."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.ledger import Ledger
from experiments.run import Task, base_task
from lowrank_vit import storage
from lowrank_vit.parallel import agreed, is_first
from lowrank_vit.quantize import quantize
from lowrank_vit.report import dense_report


def quantised(task: Task, dense: nn.Module, ledger: Ledger) -> nn.Module:
    """The model with ``job.bits`` for each weight, as it is loaded from its file; its report goes to the ledger."""
    folder, job = task.model_folder, task.job
    assert job.bits is not None
    with ledger.stage("quantise", f"round to {job.bits} bits"):
        model, report = _before(task, dense)
        if is_first() and not storage.is_saved_model(folder):
            small, addition = quantize(model, job.bits)
            storage.save(small, folder, {**report, **addition})
        agreed(None)  # that it is there
    if "report" not in ledger.found:
        ledger.keep("report", storage.load_report(folder))
    return storage.load(folder)


def _before(task: Task, dense: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """What is quantised, and its report: the dense model, or what the job without ``bits`` left behind."""
    base = base_task(task)
    if base is None:
        return dense, dense_report(dense)
    folder = base.model_folder
    return storage.load(folder), storage.load_report(folder)
