"""The position embedding at a rank, against the loss increase that it predicts, in float64."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.methods.best import KroneckerTable
from lowrank_vit.records.moments import Moments

T, N = 6, 4


def gradients() -> Tensor:
    """T N gradients, (T, N) each, whose second moment is exactly a Kronecker product."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (T, N))
    return (T * N) ** 0.5 * left @ torch.eye(T * N, dtype=torch.float64).view(-1, T, N) @ right.T


def moments(of: Tensor) -> Moments:
    sums = {"gradient_rows": (of @ of.mT).sum(0), "gradient_second": (of.mT @ of).sum(0)}
    return Moments(len(of), len(of) * T, sums)


def table() -> Tensor:
    return torch.randn(T, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_loss_is_that_of_all_gradients() -> None:
    """``1/2 E[<G, E>^2]``, where the second moment is a Kronecker product."""
    factors = KroneckerTable(damping=0.0)(table(), moments(gradients()))
    for rank in range(N + 1):
        u, v = factors.cut(rank)
        error = table() - u @ v.T
        truth = (gradients() * error).sum((1, 2)).square().mean() / 2
        assert float(factors.loss[rank]) == pytest.approx(float(truth), abs=1e-12)
    assert float(factors.loss[N]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_no_other_factors_lose_less(rank: int) -> None:
    of = gradients()
    factors = KroneckerTable(damping=0.0)(table(), moments(of))
    u, v = factors.cut(rank)
    generator = torch.Generator().manual_seed(2)
    for size in (0.01, 0.1):
        for _ in range(20):
            near = [t + size * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (u, v)]
            loss = (of * (table() - near[0] @ near[1].T)).sum((1, 2)).square().mean() / 2
            assert float(loss) > float(factors.loss[rank])


def test_few_images_are_enough() -> None:
    """One gradient, of rank one: damping fills up what it says nothing about."""
    factors = KroneckerTable()(table(), moments(gradients()[:1]))
    u, v = factors.cut(N)
    torch.testing.assert_close(u @ v.T, table())
    assert factors.loss.isfinite().all()
