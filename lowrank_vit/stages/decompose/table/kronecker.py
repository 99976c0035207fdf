"""A table of positions at a rank, weighted by the loss's Fisher information over positions and over features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import TABLES, tail_energy


@TABLES.register("kronecker")
@dataclass(frozen=True)
class KroneckerTable:
    """Minimise ``tr(A E B E^T) / (2 tr A)``, ``E = P - U V^T``: the loss increase where a table P: (t, n) is added.

    G: (t, n) is an image's loss gradient at the sum; ``A = E[G G^T]``, ``B = E[G^T G]``, whose traces are equal. Their
    Kronecker product over that trace stands for the Fisher information, as in Shampoo (Gupta et al., 2018). With
    ``A = L L^T`` and ``B = K K^T`` it is the SVD ``L^T P K = X S Q^T``: ``U = P K Q``, ``V = K^-T Q``. In nats per image.
    """

    revision: ClassVar[int] = 1

    damping: float = 0.1  # of both mean eigenvalues

    needs: ClassVar[frozenset[str]] = frozenset({"gradient_rows", "gradient_second"})
    currency: ClassVar[str] = "loss increase"

    def __call__(self, table: Tensor, moments: Moments) -> Factors:
        """Decompose the table, (t, n)."""
        rows, columns = moments.mean("gradient_rows"), moments.mean("gradient_second")
        left, ridge = cholesky_root(rows, self.damping)
        right, _ = cholesky_root(columns, self.damping)
        _, singular_values, qt = torch.linalg.svd(left.T @ table @ right, full_matrices=False)
        q = qt.T
        energy = rows.trace().clamp_min(torch.finfo(rows.dtype).tiny)
        loss = tail_energy(singular_values) / (2 * energy)
        return Factors(table @ right @ q, torch.linalg.solve_triangular(right.T, q, upper=True), loss, ridge)
