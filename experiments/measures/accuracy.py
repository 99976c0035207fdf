"""Measure for figure 2 what reducing one block, or one type of layer in all blocks, costs in accuracy.

Everything else stays dense. The weight itself becomes ``U V^T`` of rank r, the same function as two factors.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure, images_of
from experiments.measures.layers import blank, block_of, calibration_images, factors_by, hardware_of, layer_of
from lowrank_vit import collect, evaluate, find_sites
from lowrank_vit.data import ImageData
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.sites import Site

METHODS = ("svd", "representative", "whitened")
REMOVED = (25, 50, 75, 90)  # percent of the full rank
IMAGES = 250  # that a real model is evaluated on, unless a limit says otherwise
# by the measure: which layers are reduced together
GROUPS = {"accuracy_by_block": block_of, "accuracy_by_layer": layer_of}


def forward_passes(job: Job) -> float:
    """Count the statistics, and an evaluation for each variant and for the dense model."""
    assert job.measure is not None
    groups = {GROUPS[job.measure](site) for site in find_sites(blank(job.model))}
    variants = len(groups) * len(METHODS) * len(REMOVED)
    return job.calibration_samples + (1 + variants) * images_of(replace(job, limit=_limit(job)))[1]


def _limit(job: Job) -> int | None:
    return job.limit or (None if job.standin else IMAGES)


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "top1", by method and group, at each share in "removed", all on the same "n" images."""
    assert job.measure is not None
    sites, groups = find_sites(model), dict[str, list[Site]]()
    for site in sites:
        groups.setdefault(GROUPS[job.measure](site), []).append(site)
    ledger.tell("statistics of all blocks")
    needs = frozenset({"input_second", "representative"})
    moments = collect(model, sites, needs, calibration_images(data), job.seed, False)
    factors = {method: factors_by(method, model, sites, moments) for method in METHODS}
    loader = in_memory(data, _limit(job))
    score = partial(evaluate, model, loader, hardware=hardware_of(model), progress=False)
    dense = score()
    top1: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    for number, (name, group) in enumerate(groups.items(), start=1):
        ledger.tell(f"{name}, {number} of {len(groups)}")
        for method in METHODS:
            known = ledger.found.get(f"{method} {name}", {"top1": []})["top1"]
            for percent in REMOVED[len(known) :]:
                with reduced(model, group, factors[method], percent):
                    known = [*known, round(score()["top1"], 2)]
            top1[method][name] = known
            ledger.keep(f"{method} {name}", {"top1": known})
    return {"n": dense["n"], "dense": round(dense["top1"], 2), "removed": list(REMOVED), "top1": top1}


def in_memory(data: ImageData, limit: int | None) -> DataLoader[Any]:
    """Decode the images of the evaluation once."""
    few = copy.copy(data)
    few.limit = limit
    images, labels = (torch.cat(tensors) for tensors in zip(*few.val_dataloader(), strict=True))
    return DataLoader(TensorDataset(images, labels), data.batch_size)


@contextmanager
def reduced(model: nn.Module, sites: Sequence[Site], factors: Mapping[str, Factors], percent: int) -> Iterator[None]:
    """Remove ``percent`` of the full rank of these layers, at least rank 1 left; the model is dense again afterwards."""
    linears = {site: get_linear(model, site) for site in sites}
    dense = {site: linear.weight.data for site, linear in linears.items()}
    try:
        for site, linear in linears.items():
            u, v = factors[site.name].cut(max(1, round(site.full_rank * (100 - percent) / 100)))
            linear.weight.data = (v @ u.T).to(linear.weight)
        yield
    finally:
        for site, linear in linears.items():
            linear.weight.data = dense[site]


PARTS = ("calibrate", *(f"decomposition.{method}" for method in METHODS))
for name in GROUPS:
    MEASURES.register(name)(Measure(measure, forward_passes, PARTS))
