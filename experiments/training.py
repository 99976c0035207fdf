"""What follows a compression: the paper's partial fine-tune, a full one, or distillation of all factors."""

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
from lowrank_vit.teacher import augmentations


def trained(
    task: Task, model: nn.Module, teacher: nn.Module | None, data: ImageData, ledger: Ledger, run: Any
) -> nn.Module:
    """The model distilled or fine-tuned, as the job says; what was measured is in the ledger.

    ``run``: of Weights & Biases, or None.
    """
    folder, job = task.model_folder, task.job
    entry = "distillation" if job.distill_epochs else "finetune"
    if entry in ledger.found and agreed(storage.is_saved_model(folder)):
        return storage.load(folder)
    options = _options(task, job.distill_epochs or job.epochs, ledger, run)
    with ledger.stage(*(("distill", "distil") if job.distill_epochs else ("finetune", "fine-tune"))):
        if job.distill_epochs:
            assert teacher is not None
            small, protocol, described = _distilled(model, teacher, data, options)
        else:
            tuned = fit(model, data, lr=job.lr, teacher=teacher, full=job.full, **options)
            small, protocol, described = tuned.model, tuned.protocol, tuned.describe()
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


def _distilled(
    model: nn.Module, teacher: nn.Module, data: ImageData, options: dict[str, Any]
) -> tuple[nn.Module, str, dict[str, Any]]:
    images, unseen = data.calibration_tensor(), data.held_out_tensor()
    student = distill(model, teacher, images, held_out=unseen, **augmentations(data.source.mirrors), **options)
    return student.model, PROTOCOL, {**student.describe(), "calibration": data.calibration_record}
