"""Roots of moments, errors measured on them, losses of directions: by definition, by hand, and at any scale."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import covariance, oracle_shrinkage
from lowrank_vit.linalg.heads import blend, query_key
from lowrank_vit.linalg.metric import RIDGES, cholesky_root, output_metric
from lowrank_vit.linalg.pairs import BOUND, balance, pivot_rows
from lowrank_vit.records.moments import Moments
from tests.support.layer import drawn

SCALES = (1e-12, 1.0, 1e12)


def definite(size: int, seed: int = 0) -> Tensor:
    rows = drawn(2 * size, size, seed=seed)
    return rows.T @ rows


def moments_of(x: Tensor, weight: Tensor | None = None) -> Moments:
    """Of the inputs x, (rows, n), or of the outputs alone."""
    y = x if weight is None else x @ weight
    name = "input_second" if weight is None else "output_second"
    return Moments(images=len(x), tokens=len(x), sums={"input_sum": x.sum(0), name: y.T @ y})


@pytest.mark.parametrize("scale", SCALES)
def test_a_ridge_is_relative_to_the_moment(scale: float) -> None:
    moment = definite(4)
    root, ridge = cholesky_root(scale * moment)
    assert ridge == 0
    torch.testing.assert_close(root @ root.T, scale * moment, rtol=1e-12, atol=0)
    equal = scale * torch.ones(4, 4, dtype=torch.float64)
    root, ridge = cholesky_root(equal)
    assert ridge in RIDGES[1:3]
    torch.testing.assert_close(root @ root.T, equal, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="inputs is not positive semidefinite"):
        cholesky_root(-scale * moment)
    with pytest.raises(ValueError, match="positive"):
        cholesky_root(torch.full((3, 3), torch.nan, dtype=torch.float64))
    root, damped = cholesky_root(4 * scale * torch.eye(8, dtype=torch.float64), 0.5)  # of the mean diagonal
    assert damped == 0.5
    torch.testing.assert_close(root @ root.T, 6 * scale * torch.eye(8, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_covariance_has_the_rounding_errors_of_what_it_is_made_of() -> None:
    """Inputs that hardly vary: the mean diagonal of the covariance is below zero, and no size to compare with."""
    mean, identity = torch.full((4,), 1e3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    second = torch.outer(mean, mean) - 1e-9 * identity
    moments = Moments(images=1, tokens=1, sums={"input_sum": mean, "input_second": second})
    assert output_metric(identity, moments, centred=True).ridge in RIDGES[1:4]
    assert covariance(moments)[2] in RIDGES[1:4]
    x = drawn(50, 4)
    small, large = (covariance(moments_of(scale * x), 0.1)[1] for scale in (1e-6, 1.0))
    torch.testing.assert_close(small, 1e-12 * large, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_relative_errors_do_not_depend_on_the_scale(scale: float) -> None:
    x, weight = scale * (drawn(50, 6) + 1), drawn(6, 3, seed=1)
    shift, half = 0.1 * scale * drawn(3, seed=2), weight * torch.tensor([0.5, 1.0, 0.9])
    away = x @ (weight - half) - shift
    expected = float(away.square().sum() / (x @ weight).square().sum())
    for moments in (moments_of(x), moments_of(x, weight)):
        metric = output_metric(weight, moments, centred=False)
        assert metric.relative_error(half, shift) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_outputs_alone_do_not_tell_what_other_directions_cost(size: float) -> None:
    x, weight = drawn(50, 6), drawn(6, 3, seed=1)
    metric = output_metric(weight, moments_of(x, weight), centred=False)
    inside, outside = weight @ drawn(3, 1, seed=2), torch.linalg.qr(weight, mode="complete").Q[:, -1:]
    assert metric.image(inside).square().sum() == pytest.approx(float((x @ inside).square().mean(0)), rel=1e-9)
    with pytest.raises(ValueError, match="needs the input"):
        metric.image(size * outside)


def test_losses_of_logits_directions_are_their_definition() -> None:
    queries, keys, identity = definite(5), definite(5, seed=1), torch.eye(5, dtype=torch.float64)
    query, key, loss = query_key(queries, keys, 0.0)
    for kept in range(6):
        missing = identity - query[:, :kept] @ key[:, :kept].T
        defined = 0.5 * (queries @ missing @ keys @ missing.T).trace() / queries.trace()
        assert float(loss[kept:].sum()) == pytest.approx(float(defined), abs=1e-9)
    damped = [moment + 0.1 * moment.diagonal().mean() * identity for moment in (queries, keys)]
    expected = query_key(*damped, 0.0)[2] * damped[0].trace()
    torch.testing.assert_close(query_key(queries, keys, 0.1)[2] * queries.trace(), expected)


def test_a_blend_by_hand() -> None:
    fisher = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), torch.eye(2)])
    activations = torch.stack([torch.full((2, 2), 0.1), torch.zeros(2, 2)])
    expected = torch.stack([torch.tensor([[1.25, 0.5], [0.5, 2.75]]), 0.75 * torch.eye(2)])
    torch.testing.assert_close(blend(fisher, activations, 0.25), expected)


def test_shrinkage_by_hand() -> None:
    spread = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    for scale in (1e-3, 1.0):
        assert oracle_shrinkage(scale * spread, 100) == pytest.approx(
            (0.5 * 30 + 10**2) / ((101 - 0.5) * (30 - 10**2 / 4))
        )
    assert oracle_shrinkage(torch.eye(4), 100) == oracle_shrinkage(spread, 1) == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rank", [3, 2])
def test_balanced_factors_have_equal_norms(rank: int, scale: float) -> None:
    u, v = scale * drawn(7, rank) @ drawn(rank, 3, seed=1), drawn(5, 3, seed=2)
    left, right = balance(u, v)
    torch.testing.assert_close(left @ right.T, u @ v.T, rtol=1e-9, atol=1e-12 * scale)
    norms = left.norm(dim=0)[:rank]
    torch.testing.assert_close(norms, right.norm(dim=0)[:rank], rtol=1e-9, atol=0)
    assert torch.equal(norms, norms.sort(descending=True).values)


@pytest.mark.parametrize("seed", range(8))
def test_no_row_needs_more_of_the_chosen_ones(seed: int) -> None:
    factor = drawn(300, 16, seed=seed)
    pivots = pivot_rows(factor)
    assert torch.linalg.solve(factor[pivots], factor, left=False).abs().max() <= BOUND
