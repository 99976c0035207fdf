"""Measure what replacing scans costs, in a row of Table V.

A row's ``changes`` say how many scans are replaced (``layers``, a number or ``"all"``) and how (the fields of
``MeanScan``). They are chosen on labelled training images, those of calibration. A recipe compresses what is left of a model
whose scans are all refitted; as ``scan_units`` it chooses itself which scans to leave out.
"""

from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure, comparison_passes
from experiments.measures.layers import calibration_images
from lowrank_vit import MeanScan, compare, compress, mean_scan
from lowrank_vit.data import ImageData
from lowrank_vit.modules.scans import Scan

REPLACED_FIRST = {"layers": "all", "refit": "dropped"}  # where a recipe compresses the rest
DIGITS = 6


def replaced(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure the model with some scans replaced, compressed if the job has a recipe."""
    given = dict(job.changes if job.recipe is None else REPLACED_FIRST)
    layers, device = given.pop("layers"), str(next(model.parameters()).device)
    ledger.tell(f"replace {layers} of {whole_scans(model)} scans")
    images = calibration_images(data)
    count = whole_scans(model) if layers == "all" else layers
    small, _ = mean_scan(model, images, layers=count, method=MeanScan(**given), device=device)
    if job.recipe is not None:
        ledger.tell(f"compress by {job.recipe}")
        small, _ = compress(small, images, job.recipe_used(), job.reduction, seed=job.seed, device=device)
    return compared(model, small, data)


def left_out(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure what a recipe makes that has scans among its units."""
    ledger.tell(f"compress by {job.recipe}")
    options: dict[str, Any] = {"seed": job.seed, "device": str(next(model.parameters()).device)}
    small, _ = compress(model, calibration_images(data), job.recipe_used(), job.reduction, **options)
    return compared(model, small, data)


def compared(model: nn.Module, small: nn.Module, data: ImageData) -> dict[str, Any]:
    """Compare both models on the images of the evaluation; "scans_replaced" counts those that are no longer there."""
    found = compare(model, small, data.val_dataloader())
    return {
        "images": found["n"],
        "scans_replaced": whole_scans(model) - whole_scans(small),
        "scans_top1": round(found["top1"], DIGITS),
        "scans_kl": round(found["kl"], DIGITS),
    }


def whole_scans(model: nn.Module) -> int:
    """Count the scans that nothing has replaced: a replacement is a ``Scan`` as well."""
    return sum(type(module) is Scan for module in model.modules())


MEASURES.register("scan")(Measure(replaced, comparison_passes, ("scans",)))
MEASURES.register("scan_units")(Measure(left_out, comparison_passes))
