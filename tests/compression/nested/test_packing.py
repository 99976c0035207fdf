"""Tensors packed and unpacked: symmetric ones are whole again, losses keep every bit."""

import pytest
import torch

from lowrank_vit.compression.nested.file import packed, unpacked


@pytest.mark.parametrize("side", [1, 2, 3, 50])
def test_a_symmetric_matrix_is_whole_again(side: int) -> None:
    torch.manual_seed(side)
    matrix = torch.randn(side, side, dtype=torch.float64)
    matrix = matrix + matrix.T
    small = packed("covariance", matrix)
    assert (small.dtype, small.shape) == (torch.float32, (side * (side + 1) // 2,))
    assert torch.equal(unpacked("covariance", small), matrix.float().double())
