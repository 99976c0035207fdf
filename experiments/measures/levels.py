"""Measure for table C what the same cut of attention costs at the level of heads, and at that of single matrices.

Of all parameters of queries, keys, values and outputs a share is removed, by plain SVD, and the MLPs stay dense. At the
level of heads the products ``W_q W_k^T`` and ``W_v W_o`` of every head keep ``int(share kept * s)`` directions, s being the
head's width; at that of matrices each head's four, (n, s), keep the rank ``floor(share kept * n s / (n + s))``, and so do
the two of an MLP.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from lowrank_vit import Hardware, Recipe, analyse, evaluate, find_sites, get_recipe
from lowrank_vit.data import ImageData
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.images import Images

DIGITS = 4


def forward_passes(job: Job) -> float:
    """Count the statistics, and an evaluation."""
    validation = int(job.images.split("+")[1])
    return job.calibration_samples + min(job.limit or validation, validation)


def head_level(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "top1_cut", in percent, of products of heads."""
    return _products(model, data, job, ledger, biases=True)


def unbiased_head_level(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure the same without any bias in attention, as in the paper's code."""
    return _products(model, data, job, ledger, biases=False)


def products(biases: bool) -> Recipe:
    """Return the recipe that cuts products of heads."""
    return get_recipe("comcat").only("attention").but(search=False, **{"attention.biases": biases})


def _products(model: nn.Module, data: ImageData, job: Job, ledger: Ledger, *, biases: bool) -> dict[str, Any]:
    ledger.tell("products of heads")
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    device = str(next(model.parameters()).device)
    analysis = analyse(model, images, products(biases), seed=job.seed, device=device)
    ranks: dict[str, int | None] = {}
    for curve in analysis.curves:
        width = (len(curve.errors) - 1) // curve.multiple
        ranks[curve.name] = curve.multiple * max(1, int((1 - job.reduction) * width + 1e-9))
    return {"top1_cut": _top1(analysis.apply(RankPlan(ranks))[0], data)}


def matrix_level(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "top1_cut", in percent, with each head's matrices cut one by one."""
    ledger.tell("matrices of heads")
    small: Any = copy.deepcopy(model)
    for site in find_sites(small):
        if site.name.endswith((".attn.qkv", ".attn.proj")):
            width = site.in_features // small.get_submodule(site.name.rpartition(".")[0]).num_heads
            linear, axis = get_linear(small, site), 1 if site.name.endswith("proj") else 0
            parts = torch.stack(linear.weight.data.split(width, axis))  # of every head, as a layer stores it
            linear.weight.data = torch.cat(list(truncated(parts, 1 - job.reduction)), axis)
    return {"top1_cut": _top1(small, data)}


def mlp_level(model: nn.Module, data: ImageData, job: Job, ledger: Ledger) -> dict[str, Any]:
    """Measure "top1_cut", in percent, with both matrices of every MLP cut."""
    ledger.tell("matrices of MLPs")
    small = copy.deepcopy(model)
    for site in find_sites(small, r"blocks\..*\.mlp\.fc[12]$"):
        linear = get_linear(small, site)
        linear.weight.data = truncated(linear.weight.data, 1 - job.reduction)
    return {"top1_cut": _top1(small, data)}


def truncated(weight: Tensor, kept: float) -> Tensor:
    """Truncate the SVD of matrices, (..., n, d), to the rank ``floor(kept * n d / (n + d))``, at least 1."""
    n, d = weight.shape[-2:]
    rank = max(1, int(kept * n * d / (n + d) + 1e-9))
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return ((u * s[..., None, :])[..., :rank] @ vt[..., :rank, :]).to(weight)


def _top1(model: nn.Module, data: ImageData) -> float:
    cuda = next(model.parameters()).is_cuda
    hardware = Hardware(accelerator="gpu" if cuda else "cpu")
    return round(evaluate(model, data, hardware=hardware, progress=False)["top1"], DIGITS)


MEASURES.register("head_level")(Measure(head_level, forward_passes, recipe=partial(products, True)))
MEASURES.register("unbiased_head_level")(Measure(unbiased_head_level, forward_passes, recipe=partial(products, False)))
MEASURES.register("matrix_level")(Measure(matrix_level, forward_passes))
MEASURES.register("mlp_level")(Measure(mlp_level, forward_passes))
