"""Tensors in half their bytes: in float32, and only the lower triangle of a symmetric matrix."""

from __future__ import annotations

import torch
from torch import Tensor

SYMMETRIC = ("covariance", "input_second", "output_second")
EXACT = ("loss",)  # an allocator's choice may hang on the last bit


def packed(name: str, tensor: Tensor) -> Tensor:
    """Return a float64 tensor of this name as a file holds it; integers stay as they are."""
    if not tensor.is_floating_point() or name in EXACT:
        return tensor
    if name in SYMMETRIC:
        rows, columns = torch.tril_indices(*tensor.shape, device=tensor.device)
        tensor = tensor[rows, columns]
    return tensor.float()


def unpacked(name: str, tensor: Tensor) -> Tensor:
    """Return the float64 tensor that ``packed`` was given, but for rounding; one that was not packed stays as it is.

    >>> unpacked("covariance", torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.double()
    if name not in SYMMETRIC or tensor.ndim != 1:
        return tensor
    side = int((2 * len(tensor) + 0.25) ** 0.5)  # of k (k + 1) / 2 entries
    lower = tensor.new_zeros(side, side)
    rows, columns = torch.tril_indices(side, side, device=tensor.device)
    lower[rows, columns] = tensor
    return lower + lower.tril(-1).T
