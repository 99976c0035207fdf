"""Merged and fused tokens: worked by hand, and against their definitions."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lowrank_vit.modules.token_block import fused, merged, merged_by_energy


def with_sizes(*tokens: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[[value, size] for value, size in tokens]], dtype=torch.float64)


def test_the_most_similar_pair_is_merged_by_hand() -> None:
    """Tokens 0 (the class token), 2 and 4 look for a partner among 1 and 3; 2 and 3 have the same key."""
    x = with_sizes((9, 1), (1, 1), (2, 1), (6, 3), (5, 1))
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 2], [1, 1]]]).double()
    found = merged(x, keys, 1)
    assert found[0].tolist() == [[9, 1], [5, 1], [1, 1], [5, 4]]  # (2 x 1 + 6 x 3) / 4 = 5, of size 4
    assert merged(x, keys, 9).shape == (1, 3, 2)  # no more than half of the patches
    assert merged(x, keys, 0) is x


def test_the_tokens_of_most_energy_are_merged_by_hand() -> None:
    """Keys at 0, 10, 20 and 90 degrees: the second has the most energy, then the third, which is nearer to the last."""
    x = with_sizes((9, 1), (1, 1), (2, 1), (6, 3), (5, 1))
    angles = torch.tensor([45.0, 0, 10, 20, 90]).double().deg2rad()
    keys = torch.stack([angles.cos(), angles.sin()], -1)[None]
    found = merged_by_energy(x, keys, 1, 1, margin=0.5)
    assert found[0].tolist() == [[9, 1], [1, 1], [5, 1], [pytest.approx(5), 4]]
    found = merged_by_energy(x, keys, 2, 1, margin=0.5)  # the first is a source now, and joins the third, too
    assert found[0].tolist() == [[9, 1], [pytest.approx(21 / 5), 5], [5, 1]]
    assert merged_by_energy(x, keys, 9, 1, margin=0.5).shape == (1, 3, 2)
    assert merged_by_energy(x, keys, 0, 1, margin=0.5) is x


@pytest.mark.parametrize("merge", [merged, partial(merged_by_energy, margin=0.3)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_sizes_add_up_and_sums_are_kept(prefix: int, merge: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, keys = torch.rand(3, 12, 5, generator=generator).double(), torch.randn(3, 12, 4, generator=generator).double()
    found = merge(x, keys, 4, prefix)
    assert found.shape == (3, 8, 5)
    torch.testing.assert_close(found[..., -1].sum(1), x[..., -1].sum(1))
    weighted = [(each[..., :-1] * each[..., -1:]).sum(1) for each in (found, x)]
    torch.testing.assert_close(*weighted)
    for place in range(prefix):  # before the patches: as they were, in no other token
        assert (found == x[:, None, place][:, :1]).all(-1).any(1).all()


def test_unattended_tokens_are_fused_by_hand() -> None:
    x = torch.tensor([[[9.0], [1], [2], [3], [4]]]).double()
    attention = torch.tensor([[0.1, 0.4, 0.05, 0.3]]).double()
    assert fused(x, attention, 2)[0, :, 0].tolist() == pytest.approx([9, 2, 4, 0.1 * 1 + 0.05 * 3])
    assert fused(x, attention, 3) is x  # one token fused into one saves nothing
