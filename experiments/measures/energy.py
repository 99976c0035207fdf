"""Figure 1: how much of a layer's output energy is left at every rank, in the first block.

Energy kept by rank r is ``1 - ||X W - X W_r||_F^2 / ||X W||_F^2``, X all tokens of all images: below 0 where the
approximation is worse than no layer at all. Beside it stands what each decomposition itself counts ("own"): the energy
of W for plain SVD, that of ``X_rep W`` for the representative input; the paper's figure has these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from experiments.measures.layers import block_of, factors_by, image_counts, layer_of, rounded, seen_and_unseen
from experiments.registry import Job
from lowrank_vit.data import ImageData
from lowrank_vit.metric import output_metric
from lowrank_vit.records import Factors, Moments
from lowrank_vit.sites import find_sites
from lowrank_vit.steps import dense_weight

if TYPE_CHECKING:
    from experiments.ledger import Ledger

METHODS = ("svd", "representative", "whitened")
POINTS = 96  # ranks of a curve, at most


def forward_passes(job: Job) -> float:
    """The images of both kinds."""
    return job.calibration_samples + job.held_out_samples


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """The energies of every linear layer of the first block by every method."""
    sites = find_sites(model)
    sites = [site for site in sites if block_of(site) == block_of(sites[0])]
    ledger.tell("statistics of the first block")
    needs = {"input_second", "representative"}
    seen, unseen = seen_and_unseen(model, sites, needs, {"input_second"}, data, job.seed)
    ledger.tell("decompose the first block")
    factors = {method: factors_by(method, model, sites, seen) for method in METHODS}
    layers = {}
    for site in sites:
        own = {method: found[site.name] for method, found in factors.items()}
        layers[layer_of(site)] = energies(dense_weight(model, site), own, seen[site.name], unseen[site.name])
    return {"block": block_of(sites[0]), "images": image_counts(seen, unseen), "layers": layers}


def energies(weight: Tensor, factors: Mapping[str, Factors], seen: Moments, unseen: Moments) -> dict[str, Any]:
    """The curves of a layer, (n, d); "break_even" is the rank from which on the factors hold as much as the weight."""
    n, d = weight.shape
    metrics = {
        images: output_metric(weight, moments, centred=False)
        for images, moments in (("calibration", seen), ("unseen", unseen))
    }
    methods = {}
    for method, own in factors.items():
        ranks = spread(own.u.shape[1])
        curves = {images: 1 - metric.error_curve(own) for images, metric in metrics.items()}
        curves["own"] = 1 - own.loss
        methods[method] = {"ranks": ranks, **{name: rounded(curve[ranks]) for name, curve in curves.items()}}
    return {"shape": [n, d], "break_even": round(n * d / (n + d), 1), "methods": methods}


def spread(largest: int) -> list[int]:
    """Ranks from 0 to ``largest``: all of them, or ``POINTS`` at equal distances.

    >>> spread(3)
    [0, 1, 2, 3]
    """
    return torch.linspace(0, largest, min(largest + 1, POINTS)).round().int().tolist()
