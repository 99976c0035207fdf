"""Training of all factors towards the dense model, on the calibration images: between compression and evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.curves import finetune_loggers
from experiments.ledger import EpochTeller, Ledger
from experiments.run import CHECKPOINTS, Task, rank
from lowrank_vit import storage
from lowrank_vit.data import ImageData
from lowrank_vit.distill import PROTOCOL, distill


def distilled(task: Task, model: nn.Module, teacher: nn.Module, data: ImageData, ledger: Ledger, run: Any) -> nn.Module:
    """The distilled model; what was trained and measured is in the ledger. ``run``: of Weights & Biases, or None."""
    folder, job, hardware = task.model_folder, task.job, task.hardware
    if "distillation" in ledger.found and storage.is_saved_model(folder):
        return storage.load(folder)
    loggers = finetune_loggers(run)
    if hardware.devices * hardware.num_nodes == 1:  # what it tells to cannot be sent to other processes
        loggers.insert(0, EpochTeller(ledger.tell, job.distill_epochs))
    with ledger.stage("distill", "distil"):
        trained = distill(
            model,
            teacher,
            data.calibration_tensor(),
            held_out=data.held_out_tensor(),
            epochs=job.distill_epochs,
            flips=data.source.mirrors,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=hardware.strategy,
            accelerator=hardware.accelerator,
            precision=hardware.precision,
            loggers=loggers,
            checkpoint_dir=task.own_folder / CHECKPOINTS,
            seed=job.seed,
            progress=False,
        )
        entry = {**trained.describe(), "calibration": data.calibration_record}
        if rank() == 0 and not storage.is_saved_model(folder):
            report = {**ledger.found["report"], "protocol": PROTOCOL, "distillation": entry}
            storage.save(trained.model.cpu(), folder, report)
    ledger.keep("distillation", entry)
    return trained.model
