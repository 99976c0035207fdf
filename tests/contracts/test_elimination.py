"""Backward elimination of units, against least squares of every candidate; the oracle's shrinkage."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import eliminate, oracle_shrinkage, refit
from tests.support.layer import normal


def problem(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A covariance (k, k) with strong correlations and a weight (k, d)."""
    mixing = normal(k, k, seed=seed) * torch.logspace(0, -2, k)
    return mixing @ mixing.T + 1e-3 * torch.eye(k), normal(k, d, seed=seed + 1)


def loss_of(covariance: Tensor, weight: Tensor, kept: Tensor) -> float:
    """By its definition, with the dense least-squares solution."""
    root = torch.linalg.cholesky(covariance).T
    fitted = torch.linalg.lstsq(root[:, kept], root @ weight).solution
    return float(0.5 * (root @ weight - root[:, kept] @ fitted).square().sum())


def brute_force(covariance: Tensor, weight: Tensor) -> tuple[list[int], list[float]]:
    """Backward elimination with a least-squares solution for every candidate of every step."""
    left, order, losses = list(range(len(weight))), [], [0.0]
    while left:
        rests = {j: torch.tensor([i for i in left if i != j], dtype=torch.long) for j in left}
        trials = {
            j: loss_of(covariance, weight, rest) if len(rest) else 0.5 * float((weight * (covariance @ weight)).sum())
            for j, rest in rests.items()
        }
        worst = min(trials, key=trials.__getitem__)
        order.append(worst)
        losses.append(trials[worst])
        left.remove(worst)
    return order[::-1], losses[::-1]


@pytest.mark.parametrize("d", [3, 12])
def test_downdates_equal_brute_force(d: int) -> None:
    covariance, weight = problem(10, d)
    order, loss = eliminate(covariance, weight)
    truth, losses = brute_force(covariance, weight)
    assert order.tolist() == truth
    torch.testing.assert_close(loss, torch.tensor(losses), rtol=1e-8, atol=0)
    assert loss[-1] == 0


def test_many_units_are_compacted_without_a_trace() -> None:
    covariance, weight = problem(150, 3)
    order, loss = eliminate(covariance, weight)
    assert sorted(order.tolist()) == list(range(150))
    for count in (20, 70, 149):
        assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-6)


def test_a_given_order_has_its_own_losses() -> None:
    covariance, weight = problem(8, 3)
    order, loss = eliminate(covariance, weight, torch.arange(8))
    assert order.tolist() == list(range(8))
    for count in range(1, 8):
        assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-8)


def test_a_permutation_of_the_units_is_followed() -> None:
    covariance, weight = problem(12, 3)
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    order, loss = eliminate(covariance, weight)
    other, same = eliminate(covariance[turned][:, turned], weight[turned])
    assert torch.equal(turned[other], order)
    torch.testing.assert_close(same, loss, rtol=1e-8, atol=1e-14)


def test_refit_is_least_squares() -> None:
    covariance, weight = problem(9, 12)
    kept = torch.tensor([0, 3, 4, 8])
    root = torch.linalg.cholesky(covariance).T
    truth = torch.linalg.lstsq(root[:, kept], root @ weight).solution
    torch.testing.assert_close(refit(covariance, weight, kept), truth)
    assert torch.equal(refit(covariance, weight, torch.arange(9)), weight)


def test_equal_units_are_removed_for_nothing() -> None:
    """Six units, each there twice: half of them can go, whatever the weight is."""
    covariance, _ = problem(6, 3)
    twins = torch.arange(6).repeat(2)
    _, loss = eliminate(covariance[twins][:, twins] + 1e-10 * torch.eye(12), normal(12, 3, seed=3))
    assert loss[6] < 1e-8 < 1e-5 < loss[5]


def test_shrinkage_lowers_the_error_of_a_sampled_covariance() -> None:
    """Of Gaussian samples, the shrunk covariance is nearer to the true one, and by about what the best intensity gains."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.diag(torch.linspace(0.1, 3, 30))
    errors = torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        samples = torch.randn(60, 30, generator=generator, dtype=torch.float64) @ truth.sqrt()
        spread = samples.T @ samples / 60
        target = torch.eye(30) * spread.trace() / 30
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
