"""What a refit changed is carried to other sizes by least squares, the mean of the output kept."""

from functools import cache

import pytest
import torch
from torch import Tensor

from lowrank_vit import analyse
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested.file import packed, unpacked
from lowrank_vit.compression.nested.opened import narrowed, widened
from tests.support.cases import in_turn
from tests.support.models import images, tiny

PARTS = ["attn", "mlp"]
DENSE = None


@cache
def analysis() -> Analysis:
    return analyse(tiny().double(), [images(24).double()], "best")


def known_of(part: str):
    return next(known for known in analysis().decomposed if known.unit.name == f"blocks.1.{part}")


def ranks_of(part: str, count: int | None) -> dict[str, int | None]:
    """A size of a module: of an attention module, the same number of directions of both units."""
    return dict.fromkeys(known_of(part).parts, count)


def change_of(part: str, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)


def subset_of(part: str):
    return list(known_of(part).parts.values())[-1]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("count", [5, DENSE])
def test_at_the_size_that_it_was_fitted_at_a_change_is_what_it_was(part: str, count: int | None) -> None:
    change = change_of(part, len(subset_of(part).weight) if count is None else count)
    known, ranks = known_of(part), ranks_of(part, count)
    for one, other in zip(narrowed(known, ranks, widened(known, ranks, change)), change, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("part", "sizes"), in_turn(PARTS, [(9, 4), (4, 9), (DENSE, 7), (7, DENSE)]))
def test_what_a_change_adds_in_the_mean_is_the_same_at_all_sizes(
    part: str, sizes: tuple[int | None, int | None]
) -> None:
    known, subset, added = known_of(part), subset_of(part), []
    change = change_of(part, len(subset.weight) if sizes[0] is None else sizes[0])
    moved = narrowed(known, ranks_of(part, sizes[1]), widened(known, ranks_of(part, sizes[0]), change))
    for count, (weight, bias) in zip(sizes, (change, moved), strict=True):
        mean = subset.mean  # of what the dense output layer sees
        if count is not None:
            kept = known.cut(ranks_of(part, count)).kept
            mean = (mean - kept.offset) @ kept.columns
        added.append(mean @ weight + bias)
    assert torch.allclose(*added, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("side", [1, 2, 3, 50])
def test_a_symmetric_matrix_is_whole_again(side: int) -> None:
    torch.manual_seed(side)
    matrix = torch.randn(side, side, dtype=torch.float64)
    matrix = matrix + matrix.T
    small = packed("covariance", matrix)
    assert (small.dtype, small.shape) == (torch.float32, (side * (side + 1) // 2,))
    assert torch.equal(unpacked("covariance", small), matrix.float().double())
