"""What leaving out directions of one part of the model costs, as ``best`` predicts it and as it is.

A part is the queries with the keys, the values, or the hidden units of one block; all else stays dense. Predicted: the
Fisher information's second-order increase of the loss, which the allocator spends. Measured: ``KL(dense || compressed)``,
in nats for an image; the expected increase of the loss is just that, to second order, where labels follow the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchmetrics.functional import spearman_corrcoef

from experiments.measures.layers import block_of, sites_of
from experiments.registry import Job
from lowrank_vit.blocks import BlockAnalysis
from lowrank_vit.data import ImageData
from lowrank_vit.pipeline import analyse
from lowrank_vit.recipes import get_recipe
from lowrank_vit.records import ErrorCurve, RankPlan
from lowrank_vit.steps import Images

if TYPE_CHECKING:
    from experiments.ledger import Ledger

REMOVED = (25, 50, 75)  # percent of a part
IMAGES = 64  # unseen ones that a real model is compared on, unless a limit says otherwise
PARTS_OF_A_BLOCK = 3
DIGITS = 8


def forward_passes(job: Job) -> float:
    """The statistics with their gradients; each part is measured from its block on, which is half the model on average."""
    blocks = {block_of(site) for site in sites_of(job.model)}
    variants = len(blocks) * PARTS_OF_A_BLOCK * len(REMOVED)
    return 3 * job.calibration_samples + variants / 2 * min(_limit(job), job.held_out_samples)


def _limit(job: Job) -> int:
    return job.limit or (job.held_out_samples if job.standin else IMAGES)


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """For every part, both losses at each share in "removed"; "rank_correlation" is Spearman's over all of them."""
    ledger.tell("statistics of all blocks")
    recipe = get_recipe("best").but(refit=False, measured=0)
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    analysis = analyse(model, images, recipe, seed=job.seed, device=str(next(model.parameters()).device))
    assert isinstance(analysis, BlockAnalysis)
    unseen = data.held_out_tensor()[: _limit(job)]
    parts: dict[str, dict[str, list[float]]] = {
        curve.name: {"predicted": [], "measured": []} for curve in analysis.curves
    }
    for percent in REMOVED:
        ledger.tell(f"every part less {percent} %")
        plan = RankPlan({curve.name: _kept(curve, percent) for curve in analysis.curves})
        losses = ledger.found.get(f"loss {percent}")
        if losses is None:
            found = analysis.measure(plan, [unseen], len(unseen))
            losses = {name: round(loss, DIGITS) for name, (_, loss) in found.items()}
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
    """How many directions or units of a part are left, a multiple of its curve's."""
    everything = len(curve.errors) - 1
    return max(everything * (100 - percent) // 100 // curve.multiple, 1) * curve.multiple


def rank_correlation(parts: dict[str, dict[str, list[float]]]) -> float:
    """Spearman's, of all predicted with all measured losses."""
    predicted, measured = (
        torch.tensor([value for part in parts.values() for value in part[kind]], dtype=torch.float64)
        for kind in ("predicted", "measured")
    )
    return round(spearman_corrcoef(predicted, measured).item(), 4)
