"""Measure how far a compressed model is from the dense one on held-out training images: what settings are chosen by.

Neither labels nor images that are evaluated are looked at.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import compression_passes
from lowrank_vit import compare, compress
from lowrank_vit.data import ImageData
from lowrank_vit.records.images import Images

DIGITS = 6


def forward_passes(job: Job) -> float:
    """Count the passes of the compression, and of both models on the held-out images."""
    return compression_passes(job) + 2 * job.held_out_samples


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "kl", the mean ``KL(dense || compressed)`` in nats, and "agreement", the percentage of equal answers."""
    recipe = job.recipe_used()
    ledger.tell(f"compress by {recipe.name}")
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    device = str(next(model.parameters()).device)
    small, _ = compress(model, images, recipe, job.reduction, seed=job.seed, device=device)
    ledger.tell("compare on held-out images")
    found = compare(model, small, data.held_out_dataloader())
    return {"images": found["n"], "kl": round(found["kl"], DIGITS), "agreement": round(found["agreement"], DIGITS)}


MEASURES.register("divergence")(Measure(measure, forward_passes))
