"""Mixtures of sizes and pivoted factors against their definitions, in matrices of their own."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.mixtures import Gated, Mixed, MixedQueries, first_kept
from lowrank_vit.linalg.pairs import BOUND, pivot_rows, pivoted_pair
from tests.support.layer import normal

SIZES = [1, 3, 4, None]


def shares() -> Tensor:
    return normal(len(SIZES), seed=1).softmax(0)


def test_which_directions_a_size_keeps() -> None:
    assert first_kept([1, 3, None], 4).tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_a_mixture_of_truncations_is_a_gate_on_directions(dtype: torch.dtype, within: float) -> None:
    u, v, p = (each.to(dtype) for each in (normal(7, 6), normal(5, 6, seed=2), shares()))
    gated = Gated(u, v, first_kept(SIZES, 6).to(dtype))(p)
    whole = sum(share * v[:, :size] @ u[:, :size].T for share, size in zip(p, SIZES, strict=True))
    assert float((gated - whole).abs().max() / whole.abs().max()) <= within


def test_logits_of_mixed_queries_are_the_mixture_of_logits() -> None:
    """Of two heads, with biases of queries and keys; the rows of keys and values stay as they are."""
    heads, width, n = 2, 3, 4
    layer, bias = normal(3 * heads * width, n).double(), normal(3 * heads * width, seed=2).double()
    matrices, x, p = normal(4, heads, width, width, seed=3).double(), normal(5, n, seed=4).double(), shares().double()

    def by_heads(weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        made = (x @ weight.T + shift).unflatten(-1, (3, heads, width))
        return made[:, 0].transpose(0, 1), made[:, 1].transpose(0, 1)

    query, key = by_heads(layer, bias)
    truth = sum(share * query @ own @ key.mT for share, own in zip(p, matrices, strict=True))
    mixed = MixedQueries(layer, matrices)(p), MixedQueries(bias, matrices)(p)
    query, key = by_heads(*mixed)
    torch.testing.assert_close(query @ key.mT, truth, rtol=1e-12, atol=1e-12)
    assert torch.equal(mixed[0][heads * width :], layer[heads * width :])
    assert torch.equal(mixed[1][heads * width :], bias[heads * width :])


def test_other_values_are_weighed_as_they_are() -> None:
    values = normal(4, 2, 3)
    torch.testing.assert_close(Mixed(values)(torch.tensor([0.0, 0.25, 0.75, 0.0])), values[1] / 4 + 3 * values[2] / 4)


@pytest.mark.parametrize(("n", "m", "r"), [(7, 5, 3), (6, 9, 6), (4, 4, 1)])
def test_the_product_stays_and_an_identity_is_in_it(n: int, m: int, r: int) -> None:
    torch.manual_seed(n)
    factor, other = torch.randn(n, r).double(), torch.randn(m, r).double()
    pivots, pivoted, changed = pivoted_pair(factor, other)
    torch.testing.assert_close(pivoted @ changed.T, factor @ other.T)
    assert pivoted[pivots].equal(torch.eye(r).double())
    assert len(pivots.unique()) == r
    assert pivoted.abs().max() <= BOUND


def test_pivots_by_hand() -> None:
    """Of the rows 1, -4 and 2 the largest is the pivot: all are its multiples by -1/4, 1 and -1/2."""
    factor, other = torch.tensor([[1.0], [-4.0], [2.0]]).double(), torch.tensor([[3.0]]).double()
    pivots, pivoted, changed = pivoted_pair(factor, other)
    assert pivots.tolist() == [1]
    torch.testing.assert_close(pivoted, torch.tensor([[-0.25], [1.0], [-0.5]]).double())
    torch.testing.assert_close(changed, torch.tensor([[-12.0]]).double())


def test_dependent_columns_do_no_harm() -> None:
    torch.manual_seed(0)
    factor, other = torch.randn(8, 2).double() @ torch.randn(2, 4).double(), torch.randn(3, 4).double()
    factor[:, 3] = 0
    _, pivoted, changed = pivoted_pair(factor, other)
    torch.testing.assert_close(pivoted @ changed.T, factor @ other.T)
    assert pivoted.abs().max() <= BOUND


def test_elimination_alone_would_let_coefficients_grow() -> None:
    """Kahan's kind of matrix: partial pivoting takes the first rows, whose combinations grow like powers of two."""
    r = 12
    factor = torch.eye(r).double() - torch.ones(r, r).double().tril(-1)
    factor = torch.cat([factor, -torch.ones(1, r).double()])
    kept = pivot_rows(factor)
    coefficients = torch.linalg.solve(factor[kept], factor, left=False)
    grown = torch.linalg.solve(factor[:r], factor, left=False)
    assert grown.abs().max() > 100
    assert coefficients.abs().max() <= BOUND
