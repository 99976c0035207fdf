"""What follows a compression: the paper's partial fine-tune, or distillation of all factors."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.curves import finetune_loggers
from experiments.ledger import EpochTeller, Ledger
from experiments.run import CHECKPOINTS, Task
from lowrank_vit import storage
from lowrank_vit.data import ImageData
from lowrank_vit.distill import PROTOCOL, distill
from lowrank_vit.finetune import fit
from lowrank_vit.parallel import agreed, is_first

Trained = tuple[nn.Module, dict[str, Any]]  # the model, and what the report says of its training


def trained(
    task: Task, model: nn.Module, teacher: nn.Module | None, data: ImageData, ledger: Ledger, run: Any
) -> nn.Module:
    """The model distilled from ``teacher``, or fine-tuned where there is none; what was measured is in the ledger.

    ``run``: of Weights & Biases, or None.
    """
    folder, job = task.model_folder, task.job
    entry = "finetune" if teacher is None else "distillation"
    if entry in ledger.found and agreed(storage.is_saved_model(folder)):
        return storage.load(folder)
    options = _options(task, job.distill_epochs or job.epochs, ledger, run)
    with ledger.stage(*(("finetune", "fine-tune") if teacher is None else ("distill", "distil"))):
        if teacher is None:
            (small, described), protocol = _fine_tuned(model, data, job.lr, options), "partial-ft"
        else:
            (small, described), protocol = _distilled(model, teacher, data, options), PROTOCOL
        if is_first() and not storage.is_saved_model(folder):
            storage.save(small.cpu(), folder, {**ledger.found["report"], "protocol": protocol, entry: described})
    ledger.keep(entry, described)
    return small


def _options(task: Task, epochs: int, ledger: Ledger, run: Any) -> dict[str, Any]:
    """What either training is told: hardware, epochs, who listens, and where it goes on after an interruption."""
    loggers = [EpochTeller(ledger.tell, epochs), *finetune_loggers(run)]
    return {
        **task.hardware.options,
        "precision": task.hardware.precision,
        "epochs": epochs,
        "loggers": loggers,
        "checkpoint_dir": task.own_folder / CHECKPOINTS,
        "seed": task.job.seed,
        "progress": False,
    }


def _fine_tuned(model: nn.Module, data: ImageData, lr: float, options: dict[str, Any]) -> Trained:
    tuned = fit(model, data, lr=lr, **options)
    return tuned.model, tuned.describe()


def _distilled(model: nn.Module, teacher: nn.Module, data: ImageData, options: dict[str, Any]) -> Trained:
    images, unseen = data.calibration_tensor(), data.held_out_tensor()
    student = distill(model, teacher, images, held_out=unseen, flips=data.source.mirrors, **options)
    return student.model, {**student.describe(), "calibration": data.calibration_record}
