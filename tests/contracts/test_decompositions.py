"""What every decomposition promises, against dense float64 truths."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.metric import output_metric
from lowrank_vit.methods.loss_aware import TwoSided
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.calibrate.observe import resolve
from lowrank_vit.stages.decompose import DECOMPOSITIONS
from tests.support.cases import in_turn
from tests.support.compensation_problems import root
from tests.support.layer import Sample, sample

NAMES = DECOMPOSITIONS.names()
SHAPES = [(10, 16), (16, 10), (12, 12)]
TIGHT = 1e-9


def restricted(name: str, layer: Sample) -> Moments:
    """Only the statistics that the method asks for: it must not read another."""
    site = Site("layer", *layer.weight.shape, bias=True)
    wanted = resolve(DECOMPOSITIONS.get(name).needs, site)
    always = ("input_sum", "normalised_weight", "normalised_input_sum", "representative_windows")
    return replace(layer.moments, sums={k: v for k, v in layer.moments.sums.items() if k in wanted or k in always})


def factors_of(name: str, layer: Sample) -> Factors:
    return DECOMPOSITIONS.get(name)()(layer.weight, restricted(name, layer))


def unseen(layer: Sample) -> float:
    """The share of the output that lies outside the row space of the mean image, whatever the rank."""
    mean_image = layer.inputs.mean(0)
    seen = torch.linalg.pinv(mean_image) @ mean_image @ layer.weight
    return layer.output_error(seen) / layer.output_error(torch.zeros_like(layer.weight))


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
        lost = float((mean_image @ error).square().sum() / (mean_image @ weight).square().sum())
        return lost + unseen(layer)
    if name == "whitened_normalised":
        ratios = (layer.inputs @ error).square().sum((1, 2)) / (layer.inputs @ weight).square().sum((1, 2))
        return float(ratios.mean())
    if name == "whitened_centred_normalised":
        lost = ((layer.inputs - layer.mean) @ error).square().sum((1, 2))
        return float((lost / (layer.inputs @ weight).square().sum((1, 2))).mean())
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


@pytest.mark.parametrize(("shape", "name"), in_turn(SHAPES, NAMES))
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
        assert (factors.loss.diff() <= TIGHT).all()
        least = unseen(layer) if name == "representative" else 0.0
        assert factors.loss[-1] == pytest.approx(least, abs=1e-9)

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

    def test_fewer_tokens_than_dimensions_still_work(self, name: str, shape: tuple[int, int]) -> None:
        layer = sample(*shape, images=2, tokens=3)
        factors = factors_of(name, layer)
        assert torch.isfinite(factors.u).all()
        assert torch.isfinite(factors.v).all()
        assert torch.isfinite(factors.loss).all()


@pytest.mark.parametrize(("name", "shape"), in_turn(["svd", "representative", "two_sided"], SHAPES))
def test_error_curve_equals_the_error_of_every_cut(name: str, shape: tuple[int, int]) -> None:
    layer = sample(*shape)
    factors = factors_of(name, layer)
    curve = output_metric(layer.weight, layer.moments, centred=False).error_curve(factors)
    energy = layer.output_error(torch.zeros_like(layer.weight))
    truth = [layer.output_error(u @ v.T) / energy for u, v in map(factors.cut, range(len(curve)))]
    torch.testing.assert_close(curve, torch.tensor(truth), atol=1e-10, rtol=1e-8)


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
    between = root(layer.covariance) @ layer.weight @ root(second).T
    squares = torch.linalg.svdvals(between).square()
    truth = 0.5 * torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1)])
    torch.testing.assert_close(factors_of("two_sided", layer).loss, truth, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize(("name", "shape"), in_turn(["svd", "two_sided"], SHAPES))
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
def test_centred_and_normalised_is_never_worse_under_equation_3(shape: tuple[int, int]) -> None:
    """Image by image, with the mean error in the bias: what a layer of the recipe ``exact_normalised`` does."""
    layer = sample(*shape)
    best = factors_of("whitened_centred_normalised", layer)
    for name in NAMES:
        other = factors_of(name, layer)
        for rank in range(len(other.loss)):
            u, v = other.cut(rank)
            error = layer.weight - u @ v.T
            lost = (layer.inputs @ error - layer.mean @ error).square().sum((1, 2))
            truth = (lost / (layer.inputs @ layer.weight).square().sum((1, 2))).mean()
            assert best.loss[rank] <= truth + TIGHT, name


def test_rows_that_no_gradient_reaches_keep_a_little() -> None:
    """Of W = diag(1, 1): the row without Fisher information comes last, and its factor is its own all the same."""
    moments = Moments(1, 1, {"fisher_rows": torch.tensor([4e-6, 0.0]).double(), "input_sum": torch.zeros(2)})
    factors = DECOMPOSITIONS.get("fwsvd")()(torch.eye(2).double(), moments)
    torch.testing.assert_close(factors.u[:, :1] @ factors.v[:, :1].T, torch.diag(torch.tensor([1.0, 0.0])).double())
    torch.testing.assert_close(factors.u @ factors.v.T, torch.eye(2).double())
    assert 0 < factors.loss[1] < 1e-7


def test_representative_rank_is_capped_by_the_tokens() -> None:
    layer = sample(16, 20, tokens=5)
    factors = factors_of("representative", layer)
    assert factors.cap == 5
    assert factors.u.shape == (16, 5)
    lost = output_metric(layer.weight, layer.moments, centred=False).error_curve(factors)[-1]
    assert lost > 1e-3  # the literal loss is zero there, the true one is not
    literal = DECOMPOSITIONS.get("representative")(unseen=False)(layer.weight, layer.moments)
    assert literal.loss[-1] < 1e-12
    torch.testing.assert_close(factors.loss - literal.loss, lost.expand(6))


def test_the_two_readings_of_the_mean_image_by_hand() -> None:
    """One image of two windows, of one token each: (1, 0) and (0, 1); W is diag(2, 3).

    Over images, X_rep is both rows, of rank 2, and X_rep W = W. Over windows, it is (1/2, 1/2): X_rep W = (1, 3/2), of
    rank 1, with pinv(X_rep) = (1, 1)^T, so that U V^T is (1, 1)^T (1, 3/2).
    """
    weight, tokens = torch.diag(torch.tensor([2.0, 3.0])).double(), torch.eye(2, dtype=torch.float64)
    sums = {
        "representative": tokens,
        "representative_windows": torch.tensor(2.0),
        "input_second": tokens,
        "input_sum": torch.ones(2),
    }
    moments = Moments(1, 2, sums)
    decompose = DECOMPOSITIONS.get("representative")
    whole, windows = (decompose(over=over)(weight, moments) for over in ("images", "windows"))
    assert (whole.cap, windows.cap) == (2, 1)
    torch.testing.assert_close(whole.u @ whole.v.T, weight)
    torch.testing.assert_close(windows.u @ windows.v.T, torch.tensor([[1.0, 1.5], [1.0, 1.5]]).double())
    # unseen: the squared error against diag(2, 3), 1 + 2.25 + 1 + 2.25, over its square, 4 + 9
    torch.testing.assert_close(windows.loss, torch.tensor([1.0, 0.0]).double() + 6.5 / 13)
    with pytest.raises(InputError, match="unknown mean 'window': did you mean 'windows'"):
        decompose(over="window")


def test_input_and_output_side_agree() -> None:
    layer = sample(16, 10)
    sums = dict(layer.moments.sums)
    del sums["input_second"]
    for centred in (False, True):
        full = output_metric(layer.weight, layer.moments, centred=centred)
        small = output_metric(layer.weight, replace(layer.moments, sums=sums), centred=centred)
        factors = factors_of("svd", layer)
        torch.testing.assert_close(small.error_curve(factors), full.error_curve(factors), atol=1e-10, rtol=1e-7)
