"""Measure what replacing scans costs and saves. A row's ``changes`` say which, and how; a recipe compresses what is left.

``layers`` (a number, or ``"all"``) and the fields of ``MeanScan``; ``pruned``: the share of the smallest weights of every
linear layer in blocks that are set to zero afterwards. Scans are chosen on labelled training images, those of calibration.
"""

from typing import Any

import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import compression_passes
from lowrank_vit import (
    MeanScan,
    Setting,
    benchmark,
    channel_energy,
    compare,
    compress,
    find_sites,
    get_recipe,
    mean_scan,
)
from lowrank_vit.data import ImageData
from lowrank_vit.modules.scans import SS2D, Scan
from lowrank_vit.records.images import Images

REPLACED_FIRST = {"layers": "all", "refit": "dropped"}  # where a recipe compresses the rest
BATCHES = (1, 8)
SECONDS = 4.0  # of timing, for each batch size
DIGITS = 6


def forward_passes(job: Job) -> float:
    """Count the passes of choosing scans, one for each, of the compression, and of both models on the evaluation."""
    validation = int(job.images.split("+")[1])
    scans = 20 * job.calibration_samples
    return scans + (0 if job.recipe is None else compression_passes(job)) + 2 * min(job.limit or validation, validation)


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure ``measured_columns``' numbers, and which scans were replaced."""
    given = dict(job.changes if job.recipe is None else REPLACED_FIRST)
    pruned, layers = given.pop("pruned", 0.0), given.pop("layers", 0)
    names = [name for name, module in model.named_modules() if isinstance(module, Scan)]
    count, device = len(names) if layers == "all" else int(layers), str(next(model.parameters()).device)
    ledger.tell(f"replace {count} of {len(names)} scans")
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    small, report = mean_scan(model, images, layers=count, method=MeanScan(**given), device=device)
    if job.recipe is not None:
        ledger.tell(f"compress by {job.recipe}")
        recipe = get_recipe(job.recipe)
        small, _ = compress(small, images, recipe, job.reduction, seed=job.seed, device=device)
    zeros = prune(small, pruned)
    ledger.tell("evaluate")
    found = compare(model, small, data.val_dataloader())
    settings = [Setting(device, "float32", "eager", batch) for batch in BATCHES]
    speed = benchmark({"dense": model, "small": small}, settings, seconds=SECONDS, clock="cpu")["rows"]
    first, _ = next(iter(data.calibration_dataloader()))
    replaced = report["scan"]["replaced"]
    return {
        "images": found["n"],
        "scans": replaced,
        "scans_replaced": count,
        "scans_top1": round(found["top1"], DIGITS),
        "scans_drop": round(found["top1_dense"] - found["top1"], DIGITS),
        "scans_kl": round(found["kl"], DIGITS),
        **{f"scans_speed_{row['batch']}": round(row["small"]["speedup"], 3) for row in speed},
        "scans_energy": shared_energy(model, replaced, first.to(device)),
        "scans_zeros": zeros,
    }


@torch.no_grad()
def prune(model: nn.Module, share: float) -> float | None:
    """Set a share of the smallest weights of each linear layer in blocks to zero, in place; return the share of zeros.

    Ties go, too. Nothing else changes: zeros are stored and multiplied as other weights are. None for a share of zero.
    """
    if not share:
        return None
    parameters = dict(model.named_parameters())
    weights = [parameters[f"{site.name}.weight"] for site in find_sites(model)]
    for weight in weights:
        smallest = weight.abs().flatten().kthvalue(max(1, round(share * weight.numel()))).values
        weight[weight.abs() <= smallest] = 0
    return sum(int(weight.eq(0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def shared_energy(model: nn.Module, scans: list[str], images: Tensor) -> float | None:
    """Return the mean of ``channel_energy`` over some scans, given by name; None for none."""
    shares: list[float] = []
    chosen = [model.get_submodule(name.rpartition(".")[0]) for name in scans]
    hooks = [
        mixer.register_forward_pre_hook(lambda module, inputs: shares.append(channel_energy(module, inputs[0])))
        for mixer in chosen
        if isinstance(mixer, SS2D)
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(shares) / len(shares) if shares else None


MEASURES.register("scan")(Measure(measure, forward_passes, ("scans", "time")))
