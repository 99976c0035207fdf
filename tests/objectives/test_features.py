"""The objective ``features``: its metric by hand, its probe against the dense curvature, and compression by it."""

import pytest
import torch
from torch import Tensor

from lowrank_vit import InputError, analyse, get_recipe
from lowrank_vit.objectives.features import FLOOR, Features, feature_error, feature_sums, variances
from tests.support.cases import few
from tests.support.models import headless, images, outputs, token_model
from tests.support.refits import check_replay

SEEDS = 1000
MODELS = {"pooled": headless, "tokens": token_model, "swin": lambda: headless("swin")}


def relative(dense: Tensor, small: Tensor) -> float:
    """The metric by its definition: each feature's mean squared error in shares of its variance, a mean over features."""
    rows, error = dense.double().flatten(0, -2), (dense - small).double().flatten(0, -2)
    return float((error.square().mean(0) / rows.var(0, correction=0)).mean())


def test_the_divergence_by_hand() -> None:
    """Errors (1, 2) of features with variances (4, 1): 1/4 and 4, of two images one exact; tokens count as features do."""
    objective = Features((4.0, 1.0))
    dense, small = torch.tensor([[3.0, 5.0], [1.0, 1.0]]), torch.tensor([[2.0, 7.0], [1.0, 1.0]])
    readings = objective.reading(dense), objective.reading(small)
    assert readings[0].dtype == torch.float64
    assert float(objective.divergence(*readings)) == (1 / 4 + 4) / 2
    assert float(objective.pull(small, dense, 1.0)) == (1 / 4 + 4) / 4
    tokens = [objective.reading(each[:1, None].expand(1, 3, 2)) for each in (dense, small)]
    assert float(objective.divergence(*tokens)) == (1 / 4 + 4) / 2
    assert objective.pull(small.requires_grad_(), dense, 1.0).requires_grad


def test_variances_by_hand() -> None:
    dense = torch.tensor([[0.0, 7.0, 1.0], [4.0, 7.0, 3.0]], dtype=torch.float64)
    found = variances(feature_sums(dense, dense))
    assert found.tolist() == [4.0, pytest.approx(FLOOR * 5 / 3), 1.0]  # a constant feature has a share of the mean
    small = dense - torch.tensor([2.0, 0.0, 0.0])
    assert float(feature_error(feature_sums(dense, small))) == pytest.approx((4 / 4 + 0 + 0) / 3)
    with pytest.raises(InputError, match="do not vary over the images"):
        variances(feature_sums(dense[:1], dense[:1]))
    with pytest.raises(InputError, match="not finite: check the weights"):
        variances(feature_sums(dense * torch.nan, dense))
    with pytest.raises(InputError, match=r"returns \(3,\) for a batch"):
        feature_sums(dense[0], dense[0])


@pytest.mark.parametrize("kind", ["tokens", "swin"])
def test_variances_are_those_over_all_images_and_tokens(kind: str) -> None:
    model, data = MODELS[kind]().double(), images(24, "swin" if kind == "swin" else "vit").double()
    with torch.no_grad():
        rows = model(data).flatten(0, -2)
    truth = rows.var(0, correction=0)
    for size in (24, 5):  # whatever the batches
        objective = Features().fitted(model, data.split(size))
        assert objective.variances == pytest.approx(truth.tolist(), rel=1e-5)
    assert objective.fitted(model, data.split(3) * 2) is objective  # once measured, they stay
    with pytest.raises(InputError, match="only once: pass a list"):
        Features().fitted(model, iter(data.split(5)))
    with pytest.raises(InputError, match="no images"):
        Features().fitted(model, [])
    with pytest.raises(InputError, match=r"variances of 0 features, the model returns \d+: let `fitted`"):
        Features().reading(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_the_probe_has_the_curvature_of_the_divergence(kind: str) -> None:
    """The mean of its squared gradients over seeds is ``J^T D J``, D the divergence's second derivative, for one image."""
    model, data = MODELS[kind]().double(), images(12).double()
    objective, bias = Features().fitted(model, [data]), model.blocks[1].attn.proj.bias
    one = data[:1]

    def answer(value: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"blocks.1.attn.proj.bias": value}, (one,))

    dense = objective.reading(answer(bias.detach()))
    curvature = torch.func.hessian(lambda value: objective.divergence(dense, objective.reading(answer(value))))
    truth = curvature(bias.detach())
    total = torch.zeros_like(truth)
    for seed in range(SEEDS):
        (gradient,) = torch.autograd.grad(objective.probe(model(one), one, seed), bias)
        total += torch.outer(gradient, gradient)
    assert torch.dist(total / SEEDS, truth) < 0.12 * truth.norm()
    assert float((total / SEEDS).trace()) == pytest.approx(float(truth.detach().trace()), rel=0.1)


def test_signs_follow_the_image_and_the_seed_alone() -> None:
    model, data = headless(), images(6)
    objective = Features().fitted(model, [data])

    def slopes(pictures: Tensor, seed: int) -> Tensor:
        features = outputs(model, data[:1]).repeat(len(pictures), 1).requires_grad_()
        (found,) = torch.autograd.grad(objective.probe(features, pictures, seed), features)
        return found

    whole = slopes(data, 3)
    torch.testing.assert_close(slopes(data.flip(0), 3).flip(0), whole)
    torch.testing.assert_close(torch.cat([slopes(each, 3) for each in data.split(1)]), whole)
    assert not torch.equal(slopes(data, 4), whole)
    assert len({tuple(row.sign().tolist()) for row in whole}) > 1


@pytest.mark.parametrize("kind", few(MODELS, 1))
def test_measured_losses_are_those_of_whole_models(kind: str) -> None:
    """On the calibration images the objective is the definition."""
    family = "swin" if kind == "swin" else "vit"
    model, data = MODELS[kind]().double(), images(12, family).double()
    analysis = analyse(model, data.split(4), get_recipe("heads").but(refit=False, measured=0))
    check_replay(
        analysis,
        analysis.recipe.objective,
        data,
        12,
        lambda small: relative(outputs(model, data), outputs(small, data)),
    )
