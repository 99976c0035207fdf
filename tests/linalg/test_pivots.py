"""Pivoted factors: the same product, an identity in it, and coefficients that stay small."""

import pytest
import torch

from lowrank_vit.linalg.pairs import BOUND, pivot_rows, pivoted_pair


@pytest.mark.parametrize(("n", "m", "r"), [(7, 5, 3), (6, 9, 6), (4, 4, 1)])
def test_the_product_stays_and_an_identity_is_in_it(n: int, m: int, r: int) -> None:
    torch.manual_seed(n)
    factor, other = torch.randn(n, r).double(), torch.randn(m, r).double()
    pivots, pivoted, changed = pivoted_pair(factor, other)
    torch.testing.assert_close(pivoted @ changed.T, factor @ other.T)
    assert pivoted[pivots].equal(torch.eye(r).double())
    assert len(pivots.unique()) == r
    assert pivoted.abs().max() <= BOUND


def test_by_hand() -> None:
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
