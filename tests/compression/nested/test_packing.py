"""Tensors packed and unpacked: symmetric ones are whole again, losses keep every bit."""

from __future__ import annotations

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


def test_losses_and_orders_keep_every_bit() -> None:
    loss, order = torch.rand(9, dtype=torch.float64), torch.arange(8)
    assert torch.equal(unpacked("loss", packed("loss", loss)), loss)
    assert torch.equal(unpacked("order", packed("order", order)), order)


def test_what_was_not_packed_stays_as_it_is() -> None:
    matrix = torch.rand(4, 4, dtype=torch.float64)
    assert torch.equal(unpacked("input_second", matrix), matrix)
