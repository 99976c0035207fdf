"""Balanced factors: the same product with its singular values split equally between both."""

from __future__ import annotations

import torch
from torch import Tensor


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
