"""Measure what a choice that the paper leaves open in its partial fine-tune does to accuracy.

The model is compressed by the job's recipe, and fine-tuned for the job's epochs with one thing done otherwise.
"""

import copy
from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import BACKWARD, compression_passes
from lowrank_vit import Hardware, compress, evaluate, finetune
from lowrank_vit.data import ImageData
from lowrank_vit.records.images import Images

DIGITS = 6


def forward_passes(job: Job) -> float:
    """Count the passes of the compression, of the training, and of an evaluation after each epoch."""
    train, validation = map(int, job.images.split("+"))
    return compression_passes(job) + job.epochs * ((1 + BACKWARD) * train + validation)


def choice(*, batch_size: int | None = None, **options: Any) -> Measure:
    """Make the measure of one choice: another batch, or other ``options`` of ``finetune``."""

    def run(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
        """Measure "top1_tuned", the top-1 in percent after the fine-tune."""
        small = _compressed(model, data, job, ledger)
        images = copy.copy(data)
        images.batch_size = batch_size or data.batch_size
        hardware = Hardware(accelerator=next(model.parameters()).device.type)
        ledger.tell("fine-tune")
        tuned = finetune(
            small, images, epochs=job.epochs, lr=job.lr, seed=job.seed, hardware=hardware, progress=False, **options
        )
        return {"top1_tuned": round(evaluate(tuned.model, data, hardware=hardware, progress=False)["top1"], DIGITS)}

    return Measure(run, forward_passes, ("train",))


def _compressed(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> nn.Module:
    recipe = job.recipe_used()
    ledger.tell(f"compress by {recipe.name}")
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    device = str(next(model.parameters()).device)
    return compress(model, images, recipe, job.reduction, seed=job.seed, device=device)[0]


MEASURES.register("finetune")(choice())
MEASURES.register("finetune_weight_decay")(choice(weight_decay=0.05))
MEASURES.register("finetune_hard_labels")(choice(label_smoothing=0.0))
MEASURES.register("finetune_batch_256")(choice(batch_size=256))
MEASURES.register("finetune_batch_16")(choice(batch_size=16))
