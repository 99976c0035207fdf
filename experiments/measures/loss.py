"""Measure what leaving out directions of one part of the model costs, beside what ``heads`` predicts.

A part is the queries with the keys, the values, or the hidden units of one block; all else stays dense. Predicted: the
Fisher information's second-order increase of the loss, which the allocator spends. Measured: ``KL(dense || compressed)``,
in nats per image; the expected increase of the loss is just that, to second order, where labels follow the model.
"""

from typing import Any

import torch
from torch import nn
from torchmetrics.functional import spearman_corrcoef

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.measures.layers import blank, block_of, calibration_images
from lowrank_vit import Recipe, analyse, find_sites, get_recipe
from lowrank_vit.data import ImageData
from lowrank_vit.records.curves import ErrorCurve, RankPlan

REMOVED = (25, 50, 75)  # percent of a part
IMAGES = 64  # unseen ones that a real model is compared on, unless a limit says otherwise
PARTS_OF_A_BLOCK = 3
DIGITS = 8


def forward_passes(job: Job) -> float:
    """Count the statistics with their gradients; a part is measured from its block on, half the model on average."""
    blocks = {block_of(site) for site in find_sites(blank(job.model))}
    variants = len(blocks) * PARTS_OF_A_BLOCK * len(REMOVED)
    return 3 * job.calibration_samples + variants / 2 * min(_limit(job), job.held_out_samples)


def _limit(job: Job) -> int:
    return job.limit or (job.held_out_samples if job.standin else IMAGES)


def predicting() -> Recipe:
    """Return ``heads`` without what corrects its predicted losses."""
    return get_recipe("heads").but(refit=False, measured=0)


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure the loss of every part at each share in "removed"; "rank_correlation" is Spearman's over all of them."""
    ledger.tell("statistics of all blocks")
    recipe = predicting()
    analysis = analyse(
        model, calibration_images(data), recipe, seed=job.seed, device=str(next(model.parameters()).device)
    )
    unseen = data.held_out_tensor()[: _limit(job)]
    parts: dict[str, dict[str, list[float]]] = {
        curve.name: {"predicted": [], "measured": []} for curve in analysis.curves
    }
    for percent in REMOVED:
        ledger.tell(f"every part less {percent} %")
        plan = RankPlan({curve.name: _kept(curve, percent) for curve in analysis.curves})
        losses = ledger.found.get(f"loss {percent}")
        if losses is None:
            measured = analysis.measure(plan, [unseen], len(unseen))
            losses = {name: round(loss, DIGITS) for name, (_, loss) in measured.items()}
            ledger.keep(f"loss {percent}", losses)
        for curve in analysis.curves:
            parts[curve.name]["predicted"].append(round(curve.error(plan.ranks[curve.name]), DIGITS))
            parts[curve.name]["measured"].append(losses[curve.name])
    return {
        "images": {"calibration": job.calibration_samples, "unseen": len(unseen)},
        "removed": list(REMOVED),
        "parts": parts,
        "rank_correlation": rank_correlation(parts),
    }


def _kept(curve: ErrorCurve, percent: int) -> int:
    """Count the directions or units of a part that are left, rounded down to a multiple of its curve's."""
    everything = len(curve.errors) - 1
    return max(everything * (100 - percent) // 100 // curve.multiple, 1) * curve.multiple


def rank_correlation(parts: dict[str, dict[str, list[float]]]) -> float:
    """Compute Spearman's correlation of all predicted with all measured losses."""
    predicted, measured = (
        torch.tensor([value for part in parts.values() for value in part[kind]], dtype=torch.float64)
        for kind in ("predicted", "measured")
    )
    return round(spearman_corrcoef(predicted, measured).item(), 4)


MEASURES.register("loss")(Measure(measure, forward_passes, recipe=predicting))
