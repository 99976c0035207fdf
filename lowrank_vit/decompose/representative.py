"""The paper's activation-aware SVD, as written: on the average input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.decompose import DECOMPOSITIONS, tail_energy
from lowrank_vit.records import Factors, Moments


@DECOMPOSITIONS.register("representative")
@dataclass(frozen=True)
class RepresentativeSVD:
    """SVD of ``X_rep W``, X_rep the mean input over images, (tokens, n): equations (6) and (7) of the paper.

    ``U = pinv(X_rep) U* sqrt(S)``, ``V = V* sqrt(S)`` (the paper prints ``sqrt(S) V*``, which does not conform).
    Its rank is at most the number of tokens (``cap``), and whatever of W lies outside the row space of X_rep is lost.
    The loss is the fraction of the energy of ``X_rep W`` left out, which is what the paper's Algorithm 1 compares.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"representative", "input_second"})
    currency: ClassVar[str] = "energy fraction"

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""
        x = moments.mean("representative")
        left, singular_values, vt = torch.linalg.svd(x @ weight, full_matrices=False)
        cap = min(len(x), *weight.shape)
        left, singular_values, v = left[:, :cap], singular_values[:cap], vt[:cap].T
        root = singular_values.sqrt()
        u = torch.linalg.pinv(x) @ left * root
        total = singular_values.square().sum().clamp_min(torch.finfo(weight.dtype).tiny)
        return Factors(u, v * root, tail_energy(singular_values, total), cap=cap)
