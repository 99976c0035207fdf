"""What the decompositions of whole halves promise, against dense float64 truths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrank_vit.decompose import HALVES
from lowrank_vit.decompose.heads import HeadLowRank, activation_metrics, blend, query_key
from lowrank_vit.decompose.interpolate import Interpolation, eliminate, refit, refitted
from lowrank_vit.parts import AttentionSite, MlpSite
from lowrank_vit.records import Moments, Site
from tests.contracts.layer import Sample, dense_moments, sample

HEADS, WIDTH, N = 3, 4, 10


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention() -> AttentionSite:
    inner = HEADS * WIDTH
    return AttentionSite(
        "attn", Site("attn.qkv", N, 3 * inner, True, HEADS), Site("attn.proj", inner, N, True), WIDTH, None
    )


def problem(k: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A covariance (k, k) with strong correlations and a weight (k, d)."""
    mixing = normal(k, k, seed=seed) * torch.logspace(0, -2, k)
    return mixing @ mixing.T + 1e-3 * torch.eye(k), normal(k, d, seed=seed + 1)


def head_moments(slopes: Tensor) -> Moments:
    """From the gradients of B, (images, heads, s, s)."""
    x = normal(len(slopes), N, seed=6)
    sums = {
        "input_sum": x.sum(0),
        "input_second": x.T @ x,
        "head_fisher_query": (slopes @ slopes.mT).sum(0),
        "head_fisher_key": (slopes.mT @ slopes).sum(0),
    }
    return Moments(len(slopes), len(slopes), sums)


def loss_of(covariance: Tensor, weight: Tensor, kept: Tensor) -> float:
    """By its definition, with the dense least-squares solution."""
    root = torch.linalg.cholesky(covariance).T
    fitted = torch.linalg.lstsq(root[:, kept], root @ weight).solution
    return float(0.5 * (root @ weight - root[:, kept] @ fitted).square().sum())


def values_of(layer: Sample, **fields: object) -> tuple[HeadLowRank, object]:
    method = HeadLowRank(**fields)
    return method, method.values(attention(), layer.weight, layer.moments)


def test_something_is_registered() -> None:
    assert {"heads", "interpolative"} <= set(HALVES.names())


@pytest.mark.parametrize("d", [3, 12])
class TestElimination:
    def test_downdates_equal_recomputing_from_scratch(self, d: int) -> None:
        covariance, weight = problem(9, d)
        order, loss = eliminate(covariance, weight)
        left = list(range(9))
        for count in range(9, 0, -1):
            losses = (
                {j: loss_of(covariance, weight, torch.tensor([i for i in left if i != j])) for j in left[:]}
                if (count > 1)
                else {left[0]: float(0.5 * (weight * (covariance @ weight)).sum())}
            )
            worst = min(losses, key=losses.__getitem__)
            assert int(order[count - 1]) == worst
            assert float(loss[count - 1]) == pytest.approx(losses[worst], rel=1e-8)
            left.remove(worst)
        assert loss[-1] == 0
        assert (loss.diff() <= 1e-12).all()

    def test_many_units_are_compacted_without_a_trace(self, d: int) -> None:
        covariance, weight = problem(150, d)
        order, loss = eliminate(covariance, weight)
        assert sorted(order.tolist()) == list(range(150))
        for count in (20, 70, 149):
            assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-6)

    def test_a_given_order_has_its_own_losses(self, d: int) -> None:
        covariance, weight = problem(8, d)
        order, loss = eliminate(covariance, weight, torch.arange(8))
        assert order.tolist() == list(range(8))
        for count in range(1, 8):
            assert float(loss[count]) == pytest.approx(loss_of(covariance, weight, order[:count]), rel=1e-8)

    def test_refit_is_least_squares(self, d: int) -> None:
        covariance, weight = problem(9, d)
        kept = torch.tensor([0, 3, 4, 8])
        root = torch.linalg.cholesky(covariance).T
        truth = torch.linalg.lstsq(root[:, kept], root @ weight).solution
        torch.testing.assert_close(refit(covariance, weight, kept), truth)
        assert torch.equal(refit(covariance, weight, torch.arange(9)), weight)


def test_hidden_units_lose_what_they_say() -> None:
    layer = sample(12, 6)
    site = MlpSite("mlp", Site("mlp.fc1", 6, 12, True), Site("mlp.fc2", 12, 6, True))
    method = Interpolation(damping=0.0)
    part = method(site, layer.weight, layer.moments)
    slopes = layer.gradients.flatten(0, 1)
    metric = slopes.T @ slopes / len(layer.gradients)
    metric = metric + method.gradient_damping * metric.diagonal().mean() * torch.eye(6)
    for count in range(1, 13):
        rows, whole = refitted(part, part.units.kept(count))
        assert rows.shape == (count, 6)
        error = (layer.rows - layer.mean) @ (layer.weight - whole)
        truth = 0.5 * float((error @ metric * error).sum() / len(error))
        assert float(part.units.loss[count]) == pytest.approx(truth, rel=1e-6, abs=1e-12)
    assert site.units.dense == 12 * (6 + 1 + 6) + 6
    assert part.units.curve("mlp", 1).cost(5) == 5 * (6 + 1 + 6) + 6


@pytest.mark.parametrize("each_head", [True, False])
def test_values_lose_what_they_say_with_all_heads_together(each_head: bool) -> None:
    layer = sample(HEADS * WIDTH, N)
    method, part = values_of(layer, damping=0.0, each_head=each_head)
    slopes = layer.gradients.flatten(0, 1)
    metric = slopes.T @ slopes / len(layer.gradients)
    metric = metric + method.gradient_damping * metric.diagonal().mean() * torch.eye(N)
    for count in range(part.units.multiple, HEADS * WIDTH + 1, part.units.multiple):
        kept = part.units.kept(count)
        _, whole = refitted(part, kept)
        error = (layer.rows - layer.mean) @ (layer.weight - whole)
        truth = 0.5 * float((error @ metric * error).sum() / len(error))
        assert float(part.units.loss[count]) == pytest.approx(truth, rel=1e-5, abs=1e-11)
        widths = torch.bincount(kept // WIDTH, minlength=HEADS)
        assert each_head or (widths == count // HEADS).all()
    torch.testing.assert_close(whole, layer.weight)
    assert (part.units.loss.diff() <= 1e-12).all()


@pytest.mark.parametrize("each_head", [True, False])
def test_logits_lose_what_they_say(each_head: bool) -> None:
    slopes = normal(40, HEADS, WIDTH, WIDTH) * torch.logspace(0, -1, WIDTH)
    moments = head_moments(slopes)
    method = HeadLowRank(logit_damping=0.0, each_head=each_head)
    weight, bias = normal(N, 3 * HEADS * WIDTH, seed=7), normal(3 * HEADS * WIDTH, seed=8)
    logits = method.logits(attention(), weight, bias, moments)
    activations = activation_metrics(attention(), weight, bias, moments)
    left, right = (
        blend(moments.mean(name), own, method.activation_share)
        for name, own in zip(("head_fisher_query", "head_fisher_key"), activations, strict=True)
    )
    for count in range(logits.units.multiple, HEADS * WIDTH + 1, logits.units.multiple):
        mask = torch.zeros(HEADS * WIDTH)
        mask[logits.units.kept(count)] = 1
        error = torch.eye(WIDTH) - (logits.query * mask.view(HEADS, 1, WIDTH)) @ logits.key.mT
        each = (left @ error @ right * error).sum((1, 2)) / left.diagonal(dim1=1, dim2=2).sum(1)
        assert float(logits.units.loss[count]) == pytest.approx(0.5 * float(each.sum()), rel=1e-6, abs=1e-12)
    assert error.abs().max() < 1e-10  # all directions: the product as it was
    assert (logits.units.loss.diff() <= 1e-12).all()


def test_the_fisher_of_independent_factors_is_met_exactly() -> None:
    """Where D = a b^T with independent a and b, the Kronecker form is the Fisher information itself."""
    a, b = normal(20000, WIDTH, seed=3), normal(20000, WIDTH, seed=4)
    slopes = a[:, :, None] * b[:, None, :]
    error = normal(WIDTH, WIDTH, seed=5)
    truth = 0.5 * (slopes * error).sum((1, 2)).square().mean()
    left, right = (slopes @ slopes.mT).mean(0), (slopes.mT @ slopes).mean(0)
    assert float(0.5 * (left @ error @ right * error).sum() / left.trace()) == pytest.approx(float(truth), rel=0.05)
    query, key, _ = query_key(left, right, 0.1)
    torch.testing.assert_close(query @ key.T, torch.eye(WIDTH), atol=1e-10, rtol=0)


def test_activation_metrics_are_those_of_queries_and_keys() -> None:
    moments = head_moments(normal(40, HEADS, WIDTH, WIDTH))
    x, weight, bias = normal(40, N, seed=6), normal(N, 3 * HEADS * WIDTH, seed=7), normal(3 * HEADS * WIDTH, seed=8)
    queries, keys = activation_metrics(attention(), weight, bias, moments)
    q, k, _ = (x @ weight + bias).unflatten(1, (3, HEADS, WIDTH)).unbind(1)
    k = k - k.mean(0)
    torch.testing.assert_close(queries, torch.einsum("thi,thj->hij", q, q) / 40)
    torch.testing.assert_close(keys, torch.einsum("thi,thj->hij", k, k) / 40, rtol=1e-6, atol=1e-8)


def test_few_images_and_dead_units_are_finite() -> None:
    weight = sample(HEADS * WIDTH, N).weight
    inputs = torch.ones(2, 3, HEADS * WIDTH)
    inputs[..., 0] = 0
    moments = dense_moments(weight, inputs, torch.full((2, 3, N), 1e-3))
    part = HeadLowRank().values(attention(), weight, moments)
    site = MlpSite("mlp", Site("mlp.fc1", 6, HEADS * WIDTH, True), Site("mlp.fc2", HEADS * WIDTH, N, True))
    for own in (part, Interpolation()(site, weight, moments)):
        assert torch.isfinite(own.units.loss).all()
        for count in (1, 5, HEADS * WIDTH):
            assert torch.isfinite(refitted(own, own.units.kept(count))[1]).all()
    dead = torch.zeros(N, 3 * HEADS * WIDTH)
    logits = HeadLowRank().logits(attention(), dead, dead[0], head_moments(torch.zeros(2, HEADS, WIDTH, WIDTH)))
    assert torch.isfinite(logits.query).all()
    assert torch.isfinite(logits.units.loss).all()
