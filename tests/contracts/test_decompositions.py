"""What every decomposition promises, against dense float64 truths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowrank_vit.calibrate import resolve
from lowrank_vit.decompose import DECOMPOSITIONS
from lowrank_vit.decompose.two_sided import TwoSided
from lowrank_vit.metric import cholesky_root, output_metric
from lowrank_vit.records import Factors, Moments, Site
from tests.contracts.layer import Sample, sample

NAMES = DECOMPOSITIONS.names()
SHAPES = [(10, 16), (16, 10), (12, 12)]
TIGHT = 1e-9


def symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def restricted(name: str, layer: Sample) -> Moments:
    """Only the statistics that the method asks for: it must not read another."""
    site = Site("layer", *layer.weight.shape, bias=True)
    wanted = resolve(DECOMPOSITIONS.get(name).needs, site)
    always = ("input_sum", "normalised_weight", "normalised_input_sum", "representative_count")
    return replace(layer.moments, sums={k: v for k, v in layer.moments.sums.items() if k in wanted or k in always})


def factors_of(name: str, layer: Sample) -> Factors:
    return DECOMPOSITIONS.get(name)()(layer.weight, restricted(name, layer))


def own_loss(name: str, layer: Sample, approximation: Tensor) -> float:
    """The objective that each method says it minimises, by its definition."""
    weight, error = layer.weight, layer.weight - approximation
    if name == "svd":
        return float(error.square().sum() / weight.square().sum())
    if name == "asvd":
        scale = layer.rows.abs().mean(0).sqrt()[:, None]
        return float((scale * error).square().sum() / (scale * weight).square().sum())
    if name == "fwsvd":
        rows = layer.moments.sums["fisher_rows"][:, None]
        return float((rows * error.square()).sum() / (rows * weight.square()).sum())
    if name == "representative":
        mean_image = layer.inputs.mean(0)
        return float((mean_image @ error).square().sum() / (mean_image @ weight).square().sum())
    if name == "whitened_normalised":
        ratios = (layer.inputs @ error).square().sum((1, 2)) / (layer.inputs @ weight).square().sum((1, 2))
        return float(ratios.mean())
    energy = layer.output_error(torch.zeros_like(weight))
    if name == "whitened":
        return layer.output_error(approximation) / energy
    centred = (layer.rows - layer.mean) @ error
    if name in ("whitened_centred", "aafm"):
        return float(centred.square().sum() / len(centred)) / energy
    if name == "two_sided":
        second = layer.gradients.flatten(0, 1).T @ layer.gradients.flatten(0, 1) / len(layer.gradients)
        damped = second + DECOMPOSITIONS.get(name)().damping * second.diagonal().mean() * torch.eye(len(second))
        return float(0.5 * (centred @ damped * centred).sum() / len(centred))
    raise NotImplementedError(f"say what {name} minimises")


def test_something_is_registered() -> None:
    assert len(NAMES) >= 7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
class TestEveryDecomposition:
    def test_exact_at_full_rank(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape, tokens=20)  # at least n tokens, or the representative input caps the rank
        factors = factors_of(name, layer)
        assert factors.u.shape == (shape[0], min(shape))
        assert factors.v.shape == (shape[1], min(shape))
        torch.testing.assert_close(factors.u @ factors.v.T, layer.weight, atol=1e-7, rtol=0)

    def test_loss_is_the_stated_objective_at_every_rank(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape)
        factors = factors_of(name, layer)
        truth = [own_loss(name, layer, u @ v.T) for u, v in map(factors.cut, range(len(factors.loss)))]
        torch.testing.assert_close(factors.loss, torch.tensor(truth), atol=1e-9, rtol=1e-6)

    def test_loss_is_monotone(self, name: str, shape: tuple[int, int]) -> None:
        loss = factors_of(name, sample(*shape)).loss
        assert (loss.diff() <= TIGHT).all()
        assert loss[-1] < 1e-9

    def test_no_random_matrix_of_that_rank_is_better(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape)
        factors = factors_of(name, layer)
        u, v = factors.cut(4)
        best = own_loss(name, layer, u @ v.T)
        generator = torch.Generator().manual_seed(1)
        for scale in (1e-3, 1e-2, 1e-1):
            du = torch.randn(u.shape, generator=generator, dtype=u.dtype) * u.std() * scale
            dv = torch.randn(v.shape, generator=generator, dtype=v.dtype) * v.std() * scale
            assert own_loss(name, layer, (u + du) @ (v + dv).T) >= best - TIGHT

    def test_error_curve_equals_the_error_of_every_cut(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape)
        factors = factors_of(name, layer)
        curve = output_metric(layer.weight, layer.moments, centred=False).error_curve(factors)
        energy = layer.output_error(torch.zeros_like(layer.weight))
        truth = [layer.output_error(u @ v.T) / energy for u, v in map(factors.cut, range(len(curve)))]
        torch.testing.assert_close(curve, torch.tensor(truth), atol=1e-10, rtol=1e-8)

    def test_whitened_is_never_worse_under_the_second_moment(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape)
        metric = output_metric(layer.weight, layer.moments, centred=False)
        best, other = metric.error_curve(factors_of("whitened", layer)), metric.error_curve(factors_of(name, layer))
        assert (best[: len(other)] <= other + TIGHT).all()

    def test_two_sided_is_never_worse_under_its_metric(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape)
        best, other = factors_of("two_sided", layer), factors_of(name, layer)
        for rank in range(len(other.loss)):
            u, v = other.cut(rank)
            assert best.loss[rank] <= own_loss("two_sided", layer, u @ v.T) + TIGHT

    def test_fewer_tokens_than_dimensions_still_work(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape, images=2, tokens=3)
        factors = factors_of(name, layer)
        assert torch.isfinite(factors.u).all()
        assert torch.isfinite(factors.v).all()
        assert torch.isfinite(factors.loss).all()

    def test_constant_and_zero_inputs_are_finite(self, name: str, shape: tuple[int, int]) -> None:
        from tests.contracts.layer import dense_moments

        n, d = shape
        weight = sample(n, d).weight
        inputs = torch.ones(4, 5, n, dtype=torch.float64)
        inputs[..., 0] = 0.0
        moments = dense_moments(weight, inputs, torch.full((4, 5, d), 1e-3, dtype=torch.float64))
        factors = DECOMPOSITIONS.get(name)()(weight, moments)
        assert torch.isfinite(factors.u @ factors.v.T).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_attains_the_eckart_young_bound(shape: tuple[int, int]) -> None:
    layer = sample(*shape)
    singular_values = torch.linalg.svdvals(layer.rows @ layer.weight)  # of all outputs, with no statistics at all
    bound = torch.cat([singular_values.square().flip(0).cumsum(0).flip(0), torch.zeros(1)])[: min(shape) + 1]
    curve = output_metric(layer.weight, layer.moments, centred=False).error_curve(factors_of("whitened", layer))
    torch.testing.assert_close(curve, bound / singular_values.square().sum(), atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_sided_is_the_svd_between_both_roots(shape: tuple[int, int]) -> None:
    layer = sample(*shape)
    slopes = layer.gradients.flatten(0, 1)
    second = slopes.T @ slopes / len(layer.gradients)
    second = second + TwoSided().damping * second.diagonal().mean() * torch.eye(shape[1])
    between = symmetric_root(layer.covariance) @ layer.weight @ symmetric_root(second)
    squares = torch.linalg.svdvals(between).square()
    truth = 0.5 * torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1)])
    torch.testing.assert_close(factors_of("two_sided", layer).loss, truth, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_centring_is_never_worse(name: str, shape: tuple[int, int]) -> None:
    """Whatever the factors, moving the mean error into the bias cannot raise the error."""
    layer = sample(*shape)
    metric = output_metric(layer.weight, layer.moments, centred=False)
    u, v = factors_of(name, layer).cut(3)
    error = layer.weight - u @ v.T
    shifted = metric.relative_error(u @ v.T, layer.mean @ error)
    truth = float((layer.rows @ error - layer.mean @ error).square().sum() / len(layer.rows)) / metric.energy
    assert shifted == pytest.approx(truth, rel=1e-9)
    assert shifted <= metric.relative_error(u @ v.T) + TIGHT


@pytest.mark.parametrize("shape", SHAPES)
def test_aafm_is_centred_whitening(shape: tuple[int, int]) -> None:
    layer = sample(*shape)
    mimicking, whitened = factors_of("aafm", layer), factors_of("whitened_centred", layer)
    torch.testing.assert_close(mimicking.loss, whitened.loss, atol=1e-12, rtol=1e-6)
    for (u, v), (u2, v2) in zip(map(mimicking.cut, range(5)), map(whitened.cut, range(5)), strict=True):
        torch.testing.assert_close(u @ v.T, u2 @ v2.T, atol=1e-7, rtol=0)


def test_representative_rank_is_capped_by_the_tokens() -> None:
    layer = sample(16, 20, tokens=5)
    factors = factors_of("representative", layer)
    assert factors.cap == 5
    assert factors.u.shape == (16, 5)
    lost = output_metric(layer.weight, layer.moments, centred=False).error_curve(factors)[-1]
    assert lost > 1e-3  # its own loss is zero there, the true one is not
    assert factors.loss[-1] < 1e-12


def test_input_and_output_side_agree() -> None:
    layer = sample(16, 10)
    sums = dict(layer.moments.sums)
    del sums["input_second"]
    for centred in (False, True):
        full = output_metric(layer.weight, layer.moments, centred=centred)
        small = output_metric(layer.weight, replace(layer.moments, sums=sums), centred=centred)
        factors = factors_of("svd", layer)
        torch.testing.assert_close(small.error_curve(factors), full.error_curve(factors), atol=1e-10, rtol=1e-7)


def test_a_factor_outside_the_output_side_is_refused() -> None:
    layer = sample(16, 10)
    sums = dict(layer.moments.sums)
    del sums["input_second"]
    metric = output_metric(layer.weight, replace(layer.moments, sums=sums), centred=False)
    with pytest.raises(ValueError, match="input_second"):
        metric.image(torch.eye(16, dtype=torch.float64))


def test_cholesky_root_reports_the_ridge_it_took() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    root, ridge = cholesky_root(x.T @ x)
    assert 0 < ridge <= 1e-8
    torch.testing.assert_close(root @ root.T, x.T @ x, atol=1e-6, rtol=0)
    _, none = cholesky_root(torch.eye(8, dtype=torch.float64))
    assert none == 0
    with pytest.raises(ValueError, match="positive"):
        cholesky_root(torch.full((3, 3), torch.nan, dtype=torch.float64))
