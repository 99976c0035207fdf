"""Measure a recipe that has scans among its units: how many it leaves out, what that costs and saves."""

from typing import Any

from torch import nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.jobs.passes import compression_passes
from experiments.measures.scan import BATCHES, DIGITS, SECONDS, shared_energy
from lowrank_vit import Setting, benchmark, compare, compress
from lowrank_vit.data import ImageData
from lowrank_vit.modules.scans import Scan
from lowrank_vit.records.images import Images


def forward_passes(job: Job) -> float:
    """Count the passes of the compression, and of both models on the evaluation."""
    validation = int(job.images.split("+")[1])
    return compression_passes(job) + 2 * min(job.limit or validation, validation)


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure ``measured_columns``' numbers; the scans are those that the recipe left out."""
    device = str(next(model.parameters()).device)
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    ledger.tell(f"compress by {job.recipe}")
    small, _ = compress(model, images, job.recipe_used(), job.reduction, seed=job.seed, device=device)
    before, after = (whole_scans(net) for net in (model, small))
    left_out = sorted(before - after)
    ledger.tell("evaluate")
    found = compare(model, small, data.val_dataloader())
    settings = [Setting(device, "float32", "eager", batch) for batch in BATCHES]
    speed = benchmark({"dense": model, "small": small}, settings, seconds=SECONDS, clock="cpu")["rows"]
    first, _ = next(iter(data.calibration_dataloader()))
    return {
        "images": found["n"],
        "scans": left_out,
        "scans_replaced": len(left_out),
        "scans_top1": round(found["top1"], DIGITS),
        "scans_drop": round(found["top1_dense"] - found["top1"], DIGITS),
        "scans_kl": round(found["kl"], DIGITS),
        **{f"scans_speed_{row['batch']}": round(row["small"]["speedup"], 3) for row in speed},
        "scans_energy": shared_energy(model, left_out, first.to(device)),
        "scans_zeros": None,
    }


def whole_scans(model: nn.Module) -> set[str]:
    """Name the scans of a model that nothing has replaced: a replacement is a ``Scan`` as well."""
    return {name for name, module in model.named_modules() if type(module) is Scan}


MEASURES.register("scan_units")(Measure(measure, forward_passes, ("time",)))
