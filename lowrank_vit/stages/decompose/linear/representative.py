"""The paper's activation-aware SVD, as written: on the average input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.decompose import DECOMPOSITIONS, tail_energy

IMAGES, WINDOWS = "images", "windows"


@DECOMPOSITIONS.register("representative")
@dataclass(frozen=True)
class RepresentativeSVD:
    """Truncate the SVD of ``X_rep W``, X_rep the mean input ``over`` images, (tokens, n): the paper's (6) and (7).

    The paper's X_rep is the mean of the samples of the proxy data set, which are images: ``"images"``, all tokens of an
    image in their places. Where a layer sees windows (Swin's attention) these are stacked; their order is the same in
    every image, and no order of the rows changes U and V. ``"windows"`` takes each window for a sample, as its tensor
    has it: the mean over images and windows, w^2 tokens in all, of which more is averaged away and no more seen.
    ``U = pinv(X_rep) U* sqrt(S)``, ``V = V* sqrt(S)`` (the paper prints ``sqrt(S) V*``, which does not conform).
    Its rank is at most the number of tokens (``cap``), and whatever of W lies outside the row space of X_rep is lost.
    The loss is the fraction of the energy of ``X_rep W`` left out, which is what the paper's Algorithm 1 compares. It is
    exactly zero from the cap on, so that in layers with more directions than tokens it says nothing; with ``unseen``,
    what the mean image cannot see is added: the relative error ``E||x (W - U V^T)||^2 / E||x W||^2`` at the cap.
    """

    revision: ClassVar[int] = 1

    unseen: bool = True
    over: str = IMAGES

    needs: ClassVar[frozenset[str]] = frozenset({"representative", "input_second"})
    currency: ClassVar[str] = "energy fraction"

    def __post_init__(self) -> None:
        if self.over not in (IMAGES, WINDOWS):
            raise unknown("mean", self.over, (IMAGES, WINDOWS))

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""
        x = moments.mean("representative")
        if self.over == WINDOWS:
            windows = round(float(moments.sums["representative_windows"])) // moments.images
            x = x.unflatten(0, (windows, -1)).mean(0)
        left, singular_values, vt = torch.linalg.svd(x @ weight, full_matrices=False)
        cap = min(len(x), *weight.shape)
        left, singular_values, v = left[:, :cap], singular_values[:cap], vt[:cap].T
        root = singular_values.sqrt()
        u = torch.linalg.pinv(x) @ left * root
        total = singular_values.square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
        factors = Factors(u, v * root, tail_energy(singular_values, total), cap=cap)
        if not self.unseen:
            return factors
        errors = output_metric(weight, moments, centred=False).error_curve(factors)
        return replace(factors, loss=factors.loss + errors[-1])
