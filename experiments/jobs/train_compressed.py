"""Train what a compression left: the paper's partial fine-tune, a full one, or distillation of all factors."""

from typing import Any, cast

import timm
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from experiments.jobs.ledger import EpochTeller, Ledger
from experiments.jobs.task import CHECKPOINTS, Task
from experiments.tracking.curves import finetune_loggers
from lowrank_vit import augmentations, distill, finetune, is_saved_model, learn, load, save
from lowrank_vit.data import ImageData
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.processes import agreed, is_first


def trained(
    task: Task, model: nn.Module, teacher: nn.Module | None, data: ImageData, ledger: Ledger, run: Any
) -> nn.Module:
    """Distil or fine-tune the model, as the job says; what was measured is in the ledger.

    ``run``: of Weights & Biases, or None.
    """
    folder, job = task.model_folder, task.job
    entry = "distillation" if job.distill_epochs else "finetune"
    if entry in ledger.found and agreed(is_saved_model(folder)):
        return load(folder)
    options = learning_options(task, job.distill_epochs or job.epochs, ledger, run)
    with ledger.stage(*(("distill", "distil") if job.distill_epochs else ("finetune", "fine-tune"))):
        if job.distill_epochs:
            assert teacher is not None
            small, protocol, described = _distilled(model, teacher, data, {**job.distill_changes, **options})
        else:
            settings = {**job.finetune_changes, **options}
            tuned = finetune(model, data, lr=job.lr, teacher=teacher, full=job.full, **settings)
            small, protocol, described = tuned.model, tuned.protocol, tuned.describe()
        if is_first() and not is_saved_model(folder):
            report = {**ledger.found["report"], "protocol": protocol, entry: described}
            save(small.cpu(), folder, cast(Report, report))
    ledger.keep(entry, described)
    return small


def structured(task: Task, model: nn.Module, teacher: nn.Module, data: ImageData, ledger: Ledger, run: Any) -> Any:
    """Learn a structure together with the weights of ``model``, in place; return what was learnt.

    From scratch, the weights are random at first, by the job's seed.
    """
    job, options = task.job, learning_options(task, task.job.gradual_epochs, ledger, run)
    options |= {"checkpoint_dir": task.own_folder / CHECKPOINTS / "gates", "teacher": teacher if job.full else None}
    if job.scratch:
        with isolate_rng():
            torch.manual_seed(job.seed)
            model.load_state_dict(timm.create_model(job.model, pretrained=False).state_dict())
    with ledger.stage("learn", f"learn by {job.recipe}"):
        return learn(model, data, job.recipe_used(), job.reduction, lr=job.lr, **options)


def learning_options(task: Task, epochs: int, ledger: Ledger, run: Any) -> dict[str, Any]:
    """Return the options of any training: hardware, epochs, loggers, and where it resumes after an interruption."""
    loggers = [EpochTeller(ledger.tell, epochs), *finetune_loggers(run)]
    return {
        "hardware": task.hardware,
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
    return student.model, student.protocol, {**student.describe(), "calibration": data.calibration_record}
