"""The product that every second moment is made of: ``X^T X``, at little over half the work of a general product.

Only what stands on and above the diagonal is multiplied out and added up, panel by panel: ``(1 + p / n) / 2`` of the work
of the whole with panels of p columns. ``mirrored`` completes a sum, once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PANEL = 128  # columns: narrower panels save more of the work, and each product of them is slower


def _panels(n: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + PANEL, n)) for start in range(0, n, PANEL))


@torch.no_grad()
def upper_gram(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The panels of ``X^T diag(w) X``, (n, n), for rows x: (rows, n) and weights (rows,), none negative; zeros below.

    Rows of no weight are left out: in a last block they are nearly all.
    """
    if weights is not None:
        heard = weights != 0
        if 2 * int(heard.sum()) < len(x):
            x, weights = x[heard], weights[heard]
        x = x * weights.sqrt()[:, None]
    product = x.new_zeros(x.shape[1], x.shape[1])
    for start, stop in _panels(x.shape[1]):
        torch.mm(x[:, start:stop].T, x[:, start:], out=product[start:stop, start:])
    return product


def add_upper(total: Tensor, product: Tensor) -> None:
    """Add the panels of an ``upper_gram`` to a sum, which may be of a higher precision."""
    for start, stop in _panels(len(total)):
        total[start:stop, start:] += product[start:stop, start:]


def mirrored(product: Tensor) -> Tensor:
    """The whole symmetric matrix, in place."""
    for start, stop in _panels(len(product)):
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product


def gram(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """``X^T diag(w) X``, (n, n), whole: see ``upper_gram``."""
    return mirrored(upper_gram(x, weights))
