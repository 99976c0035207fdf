"""Round to fewer bits what another job has compressed: that job is run first, and shared by all numbers of bits."""

from torch import nn

from experiments.jobs.ledger import Ledger
from experiments.jobs.task import Task, base_task
from lowrank_vit import dense_report, is_saved_model, load, load_report, quantize, save
from lowrank_vit.data import ImageData
from lowrank_vit.records.images import Images
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.processes import agreed, is_first


def quantized(task: Task, dense: nn.Module, data: ImageData, ledger: Ledger) -> nn.Module:
    """Return the model with ``job.bits`` for each weight, as it is loaded from its file; its report goes to the ledger."""
    folder, job = task.model_folder, task.job
    assert job.bits is not None
    with ledger.stage("quantise", f"round to {job.bits} bits"):
        model, report = _before(task, dense)
        if is_first() and not is_saved_model(folder):
            seen = Images(data.calibration_dataloader(), record=data.calibration_record) if job.quantizer else None
            small, addition = quantize(model, job.bits, seen, quantizer=job.quantizer or "nearest")
            save(small, folder, {**report, **addition})
        agreed(None)  # that it is there
    if "report" not in ledger.found:
        ledger.keep("report", load_report(folder))
    return load(folder)


def _before(task: Task, dense: nn.Module) -> tuple[nn.Module, Report]:
    """Return the model to quantise, and its report: the dense one, or what the job without ``bits`` left behind."""
    base = base_task(task)
    if base is None:
        return dense, dense_report(dense)
    folder = base.model_folder
    return load(folder), load_report(folder)
