"""Pairs of factors with the same product: singular values split equally between both, or an identity that is not stored."""

import torch
from torch import Tensor

BOUND = 1.05  # of the coefficients
SWAPS = 100  # at most, for each column


def balance(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``U, V`` of the same product with ``U^T U = V^T V`` diagonal: ``sqrt(S)`` on both sides.

    Training and quantising unbalanced factors destroys them. u: (n, r), v: (d, r), r at most min(n, d).
    """
    if len(u) < len(v):
        v, u = balance(v, u)
        return u, v
    right, upper = torch.linalg.qr(v)
    left = u @ upper.T
    squared, rotation = torch.linalg.eigh(left.T @ left)  # = B S^2 B^T, so that (U R^T B S^-1/2) (Q B S^1/2)^T is U V^T
    root = squared.clamp_min(1e-16 * squared[-1]).clamp_min(torch.finfo(squared.dtype).tiny).pow(0.25).flip(0)
    rotation = rotation.flip(1)
    return left @ rotation / root, right @ rotation * root


def pivot_rows(factor: Tensor) -> Tensor:
    """Choose r rows of a factor (n, r) of full rank that all others are combinations of, with coefficients of about 1.

    Rows are exchanged as long as a coefficient exceeds ``BOUND``: each exchange multiplies the chosen rows' determinant
    by it (maxvol; Goreinov et al., How to find a good submatrix, 2010). Returns indices, (r,).
    """
    rank = factor.shape[1]
    _, swapped = torch.linalg.lu_factor(factor)
    order = list(range(len(factor)))
    for place, other in enumerate((swapped - 1).tolist()):
        order[place], order[other] = order[other], order[place]
    pivots = torch.tensor(order[:rank], device=factor.device, dtype=torch.long)
    coefficients = torch.linalg.solve(factor[pivots], factor, left=False)
    for _ in range(SWAPS * rank):
        row, column = divmod(int(coefficients.abs().argmax()), rank)
        if abs(float(coefficients[row, column])) <= BOUND:
            break
        change = coefficients[row].clone()
        change[column] -= 1
        coefficients -= torch.outer(coefficients[:, column] / coefficients[row, column], change)
        pivots[column] = row
    return pivots


def pivoted_pair(factor: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``pivots, F', G'`` of the same product, ``F' G'^T = F G^T``, with the identity in the rows F'[pivots].

    So r (n + m) numbers become r (n + m - r). (As in PIFA: Zhao et al., ICML 2025.) factor: (n, r), other: (m, r), r at
    most n, float64; the rank may be below r.
    """
    orthonormal, upper = torch.linalg.qr(factor)  # its columns are independent, also where those of the factor are not
    pivots = pivot_rows(orthonormal)
    square = orthonormal[pivots]
    pivoted = torch.linalg.solve(square, orthonormal, left=False)
    pivoted[pivots] = torch.eye(len(pivots), dtype=factor.dtype, device=factor.device)
    return pivots, pivoted, other @ upper.T @ square.T
