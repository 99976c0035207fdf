"""The symmetric product against the dense one in float64, on both sides of the panel's width."""

import pytest
import torch

from lowrank_vit.linalg.metric import PANEL, PIECE, assembled, gram, gram_panels, weighted_sum
from tests.support.cases import in_turn


@pytest.mark.parametrize(
    ("width", "dtype"), in_turn([1, PANEL, PANEL + 1, 3 * PANEL + 5], [torch.float32, torch.float64])
)
def test_it_is_the_whole_product(width: int, dtype: torch.dtype) -> None:
    """Within the bound of a sum of m products, ``m eps |X|^T |X|``."""
    x = torch.randn(40, width, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.rand(40, dtype=dtype, generator=torch.Generator().manual_seed(1))
    bound = 43 * torch.finfo(dtype).eps
    for own, rows in ((gram(x), x.double()), (gram(x, weights), x.double() * weights.double().sqrt()[:, None])):
        assert ((own - rows.T @ rows).abs() <= bound * (rows.abs().T @ rows.abs())).all()


def test_rows_without_weight_are_left_out_and_nothing_else_is() -> None:
    x, weights = torch.randn(50, 7, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    assert not gram(x, weights).any()
    weights[[3, 17]] = torch.tensor([1e-300, 2.0], dtype=torch.float64)
    torch.testing.assert_close(gram(x, weights), 2 * torch.outer(x[17], x[17]) + 1e-300 * torch.outer(x[3], x[3]))
    weights[5] = torch.nan
    assert gram(x, weights).isnan().all()


@pytest.mark.parametrize("width", [PANEL - 1, 3 * PANEL + 5])
def test_panels_are_added_up_and_assembled_once(width: int) -> None:
    first, second = torch.randn(2, 30, width, generator=torch.Generator().manual_seed(0)).double()
    whole = assembled([a + b for a, b in zip(gram_panels(first), gram_panels(second), strict=True)])
    x = torch.cat([first, second])
    torch.testing.assert_close(whole, x.T @ x)


@pytest.mark.parametrize("rows", [1, PIECE, PIECE + 1])
def test_a_weighted_sum_of_many_rows_is_exact_to_single_precision(rows: int) -> None:
    """Rows far from zero, and one in 197 of nearly all weight, as the class token has."""
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(rows, 24, generator=generator) * 0.03 + 1, torch.rand(rows, generator=generator) * 1e-6
    weights[::197] += 1
    found, truth = weighted_sum(x, weights), weights.double() @ x.double()
    assert found.dtype == torch.float64
    assert ((found - truth).abs() <= 1e-6 * truth).all()
