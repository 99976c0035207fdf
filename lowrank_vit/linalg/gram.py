"""The products that moments are made of: ``X^T X``, at little over half the work of a general product, and ``w^T X``.

Only the blocks on and above the diagonal are computed and summed, as panels of p columns: ``(1 + p / n) / 2`` of the work
and of the memory of the full matrix, in pieces that stay in the cache. ``assembled`` makes the full matrix of a sum, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PANEL = 128  # columns: narrower panels save more work, but their products are slower
PIECE = 64  # rows that are added up in float32


def gram_panels(x: Tensor, weights: Tensor | None = None) -> list[Tensor]:
    """Compute ``X^T diag(w) X`` for rows x: (rows, n), weights (rows,) >= 0, in panels (p, n), (p, n - p), ...

    Rows of weight zero are left out if they are the majority: in a last block they are nearly all.
    """
    if weights is not None:
        nonzero = weights != 0
        if 2 * int(nonzero.sum()) < len(x):
            x, weights = x[nonzero], weights[nonzero]
        x = x * weights.sqrt()[:, None]
    return [x[:, start : start + PANEL].T @ x[:, start:] for start in range(0, x.shape[1], PANEL)]


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Compute ``X^T w``, (n,), float64, for rows x: (rows, n) and weights (rows,), with a relative error of about ``1e-7``.

    A single float32 product adds one row after the other: over ten thousand rows its error is up to 1e-4 of the mean, which
    some covariances cannot afford. So it is computed in pieces.
    """
    whole = len(x) // PIECE * PIECE
    pieces = torch.bmm(weights[:whole].view(-1, 1, PIECE), x[:whole].view(-1, PIECE, x.shape[1]))
    return pieces.sum((0, 1), dtype=torch.float64) + weights[whole:] @ x[whole:]


def assembled(panels: Sequence[Tensor]) -> Tensor:
    """Assemble the symmetric matrix, (n, n), from the panels of its upper half."""
    n = panels[0].shape[1]
    whole = panels[0].new_empty(n, n)
    for index, panel in enumerate(panels):
        start, stop = index * PANEL, index * PANEL + len(panel)
        whole[start:stop, start:] = panel
        whole[stop:, start:stop] = panel[:, len(panel) :].T
    return whole


def gram(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the full ``X^T diag(w) X``, (n, n); see ``gram_panels``."""
    return assembled(gram_panels(x, weights))
