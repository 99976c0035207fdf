"""The oracle's shrinkage: against its risk, found by drawing samples, and worked by hand."""

import pytest
import torch

from lowrank_vit.linalg.elimination import oracle_shrinkage


def test_by_hand() -> None:
    """Trace 4, squared norm 10, p = 2: 4^2 / ((n + 0) (10 - 8)), so 16 / 2n."""
    spread = torch.diag(torch.tensor([3.0, 1.0]).double())
    assert oracle_shrinkage(spread, 100) == pytest.approx(16 / 200)
    assert oracle_shrinkage(7 * spread, 100) == pytest.approx(16 / 200)
    assert oracle_shrinkage(spread, 1) == 1.0
    assert oracle_shrinkage(torch.eye(5).double(), 10**6) == 1.0


def test_it_lowers_the_error_of_a_sampled_covariance() -> None:
    """Of Gaussian samples, the shrunk covariance is nearer to the true one, and by about what the best intensity gains."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.diag(torch.linspace(0.1, 3, 30).double())
    errors = torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        samples = torch.randn(60, 30, generator=generator, dtype=torch.float64) @ truth.sqrt()
        spread = samples.T @ samples / 60
        target = torch.eye(30).double() * spread.trace() / 30
        own = oracle_shrinkage(spread, 60)
        best = min(
            float((torch.lerp(spread, target, each) - truth).norm()) for each in torch.linspace(0, 1, 101).tolist()
        )
        errors += torch.tensor(
            [float((spread - truth).norm()), float((torch.lerp(spread, target, own) - truth).norm()), best]
        )
    plain, shrunk, best = errors.tolist()
    assert shrunk < 0.8 * plain
    assert shrunk < 1.05 * best
