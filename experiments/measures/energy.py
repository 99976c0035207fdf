"""Measure for figure 1 how much of a layer's output energy is left at every rank, in the first block.

Energy kept by rank r is ``1 - ||X W - X W_r||_F^2 / ||X W||_F^2``, X all tokens of all images: below 0 where the
approximation is worse than no layer at all. Beside it stands what each decomposition itself counts ("own"): the energy
of W for plain SVD, that of ``X_rep W`` for the representative input; the paper's figure has these.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure, statistics_passes
from experiments.measures.layers import DIGITS, block_of, factors_by, image_counts, layer_of, statistics
from lowrank_vit import dense_weight, find_sites
from lowrank_vit.data import ImageData
from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments

METHODS = ("svd", "representative", "whitened")
POINTS = 96  # ranks of a curve, at most


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure the energies of every linear layer of the first block by every method."""
    sites = find_sites(model)
    sites = [site for site in sites if block_of(site) == block_of(sites[0])]
    ledger.tell("statistics of the first block")
    needs = {"input_second", "representative"}
    moments = statistics(model, sites, needs, {"input_second"}, data, job.seed)
    ledger.tell("decompose the first block")
    factors = {method: factors_by(method, model, sites, moments["calibration"]) for method in METHODS}
    layers = {}
    for site in sites:
        of_site = {method: by_site[site.name] for method, by_site in factors.items()}
        own = {kind: by_site[site.name] for kind, by_site in moments.items()}
        layers[layer_of(site)] = energies(dense_weight(model, site), of_site, own)
    return {"block": block_of(sites[0]), "images": image_counts(moments), "layers": layers}


def energies(weight: Tensor, factors: Mapping[str, Factors], moments: Mapping[str, Moments]) -> dict[str, Any]:
    """Return the curves of a layer, (n, d); from the rank "break_even" on the factors hold as much as the weight."""
    n, d = weight.shape
    metrics = {images: output_metric(weight, each, centred=False) for images, each in moments.items()}
    methods = {}
    for method, full in factors.items():
        ranks = spread(full.u.shape[1])
        curves = {images: 1 - metric.error_curve(full) for images, metric in metrics.items()} | {"own": 1 - full.loss}
        kept = {name: [round(share, DIGITS) for share in curve[ranks].tolist()] for name, curve in curves.items()}
        methods[method] = {"ranks": ranks, **kept}
    return {"shape": [n, d], "break_even": round(n * d / (n + d), 1), "methods": methods}


def spread(largest: int) -> list[int]:
    """Spread ranks from 0 to ``largest``: all of them, or ``POINTS`` at equal distances.

    >>> spread(3)
    [0, 1, 2, 3]
    """
    return torch.linspace(0, largest, min(largest + 1, POINTS)).round().int().tolist()


PARTS = ("calibrate", *(f"decomposition.{method}" for method in METHODS))
MEASURES.register("energy")(Measure(measure, statistics_passes, PARTS))
