"""The refit of every half's output: dense least squares as the truth, layouts against what the modules really do."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import analyse, compress
from lowrank_vit.architectures.base import family_of, first_inputs
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.correct.regression import Regression, cross_validated
from tests.support.cases import few, in_turn
from tests.support.models import KINDS, LONE, VIT, WALKED, images, model_and_images, modules_of, outputs, tiny
from tests.support.refits import check_refit, check_streams, check_walk, halved, sensitivities_of

PLAIN = get_recipe("heads").but(refit=False, measured=0)


def tail(name: str) -> str:
    return ".proj" if name.endswith("attn") else ".fc2"


def test_regression_is_weighted_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    h, e = (torch.randn(60, width, generator=generator, dtype=torch.float64) + 1 for width in (5, 3))
    weights, fit = torch.rand(60, generator=generator, dtype=torch.float64), Regression.empty(5, 3)
    for part in (slice(0, 20), slice(20, 60)):
        fit.add(h[part], e[part], weights[part])
    root = weights.sqrt()[:, None]
    truth = torch.linalg.lstsq(root * torch.cat([h, torch.ones(60, 1)], 1), root * e).solution
    weight, bias = fit.solve(0.0)
    torch.testing.assert_close(torch.cat([weight, bias[None]]), truth)
    ridge = 0.1 * (weights @ h.square()).mean() / weights.sum()
    extra = torch.cat([ridge.sqrt() * torch.eye(5), torch.zeros(5, 1)], 1)
    rows = torch.cat([root / weights.sum().sqrt() * torch.cat([h, torch.ones(60, 1)], 1), extra])
    truth = torch.linalg.lstsq(rows, torch.cat([root / weights.sum().sqrt() * e, torch.zeros(5, 3)])).solution
    weight, bias = fit.solve(0.1)
    torch.testing.assert_close(torch.cat([weight, bias[None]]), truth)


def folds_of(h: Tensor, e: Tensor, count: int) -> list[Regression]:
    folds = [Regression.empty(h.shape[1], e.shape[1]) for _ in range(count)]
    for index, fold in enumerate(folds):
        fold.add(h[index::count], e[index::count], torch.ones(len(h[index::count])).to(h))
    return folds


def test_the_gain_is_the_error_that_is_saved() -> None:
    h, e = (torch.randn(30, width, dtype=torch.float64) for width in (5, 3))
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    (fold,) = folds_of(h, e, 1)
    truth = e.square().sum() - (e - h @ weight - bias).square().sum()
    assert fold.gain(weight, bias) == pytest.approx(float(truth))


def test_cross_validation_is_leaving_one_out() -> None:
    """The ridge with the least error on rows left out, by separate fits; none at all where there is nothing to learn."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(24, 10, generator=generator, dtype=torch.float64)
    e = h @ torch.randn(10, 3, generator=generator, dtype=torch.float64)
    e = e + 2 * torch.randn(24, 3, generator=generator, dtype=torch.float64)
    ridges, errors = (1e-6, 1e-2, 0.1, 0.3, 1.0, 100.0), []
    for ridge in ridges:
        error = 0.0
        for index in range(4):
            inside = torch.arange(24) % 4 != index
            weight, bias = folds_of(h[inside], e[inside], 1)[0].solve(ridge)
            error += float((e[~inside] - h[~inside] @ weight - bias).square().sum())
        errors.append(error)
    weight, bias, chosen = cross_validated(folds_of(h, e, 4), ridges)
    assert chosen == ridges[errors.index(min(errors))]
    assert chosen not in (ridges[0], ridges[-1])
    torch.testing.assert_close(weight, folds_of(h, e, 1)[0].solve(chosen)[0])
    noise = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    weight, bias, chosen = cross_validated(folds_of(h, noise - noise.mean(0), 4), (1e-6, 1e-3))
    assert chosen is None
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize(("kind", "sensitivity"), few(in_turn(WALKED, [0.0, 0.5]), 3))
def test_the_first_half_is_fitted_by_dense_least_squares(kind: str, sensitivity: float) -> None:
    """Its last layer, from all tokens at once: what the dense stream is after it, on its own inputs there."""
    model, data = model_and_images(kind)
    analysis = analyse(model, data.split(8), PLAIN)
    site = analysis.units[0].site
    plan = {curve.name: None if not curve.name.startswith(site.name) else 3 for curve in analysis.curves}
    small, _ = analysis.apply(RankPlan(plan))
    family = family_of(model)
    name, block = next((n, step) for n, step in family.steps(model).items() if family.branches(step))
    dense, cut = family.branches(block)[0], family.branches(small.get_submodule(name))[0]
    layer, inputs = cut.output_layer, []
    layer.weight.data *= 0.5  # much to mend
    before = layer.weight.clone()
    layer.register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
    (x,) = first_inputs(model, block, [data])
    with torch.no_grad():
        error = dense.tokens(dense.add(x) - cut.add(x))
        there = dense.tokens(torch.ones_like(x))[..., 0]
    share = analysis.moments[site.linears[-1].name].sums["sensitive_tokens"]
    rows = there * (1 - sensitivity + sensitivity * len(share) * share / share.sum())
    root = rows.flatten().sqrt()[:, None]
    h = torch.cat([inputs.pop().flatten(0, -2), torch.ones(len(root), 1)], 1)
    truth = torch.linalg.lstsq(root * h, root * error.flatten(0, 1)).solution
    truth = truth if dense.scale is None else truth / dense.scale.detach()
    refit = OutputRefit(ridges=(0.0,), sensitivity=sensitivity)
    refit(model, small, sensitivities_of(analysis), data.split(8))
    scale = float(truth.abs().max())
    torch.testing.assert_close(layer.weight - before, truth[:-1].T, atol=1e-3 * scale, rtol=1e-3)


@pytest.mark.parametrize("kind", WALKED)
def test_steps_are_the_whole_way_in_the_order_of_the_output_layers(kind: str) -> None:
    model, data = model_and_images(kind, 3)
    check_walk(model, data, outputs(model, data))


@pytest.mark.parametrize("kind", few(WALKED, 3))
def test_nothing_to_mend_changes_nothing(kind: str) -> None:
    model, data = model_and_images(kind)
    analysis = analyse(model, data.split(8), "heads")
    same, report = analysis.apply(RankPlan({c.name: len(c.errors) - 1 for c in analysis.curves}))
    assert report["recipe_fields"]["refit"]
    with torch.no_grad():
        torch.testing.assert_close(same(data), model(data), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", few(WALKED, 3))
def test_the_streams_are_those_of_both_models(kind: str) -> None:
    model, data = model_and_images(kind)
    analysis = analyse(model, data.split(8), PLAIN)
    check_streams(analysis, analysis.compress(0.4)[0], data, 8)


@pytest.mark.parametrize("kind", few([*KINDS, *LONE], 1))
def test_it_brings_the_model_nearer_to_the_dense_one(kind: str) -> None:
    """With the same number of parameters, on the images that it was fitted on."""
    model, data = model_and_images(kind, 64)
    folded, plain = compress(model, data.split(16), get_recipe("heads").but(refit=False), 0.4, held_out=[data])
    mended, report = compress(model, data.split(16), "heads", 0.4, held_out=[data])
    assert report["params"] == plain["params"]
    assert "refit" not in plain
    assert set(report["refit"]["ridges"]) == {layer["name"] + tail(layer["name"]) for layer in report["layers"]}
    before, after = divergences(Classification(), model, (folded, mended), [data])
    assert report["refit"]["kl_held_out_before"] == pytest.approx(before)
    assert report["refit"]["kl_held_out"] == pytest.approx(after)
    assert after < (0.9 if kind in KINDS else 1) * before


def test_layer_scale_is_divided_out() -> None:
    """A scaled half is the half of a model whose output layer is scaled: both are refitted to the same function."""
    torch.manual_seed(0)
    scaled = timm.create_model("vit_tiny_patch16_224", pretrained=False, **VIT, init_values=0.1).eval().double()
    plain, data = tiny().double(), images(24).double()
    for name, parameter in scaled.named_parameters():
        if not name.endswith("gamma"):
            parameter.data = plain.get_parameter(name).data.clone()
            continue
        parameter.data = torch.rand_like(parameter) + 0.5
        half = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        layer = plain.get_submodule(half)
        layer.weight.data *= parameter.data[:, None]
        layer.bias.data *= parameter.data
    assert sum(name.endswith("gamma") for name, _ in scaled.named_parameters()) == 4
    with torch.no_grad():
        torch.testing.assert_close(scaled(data), plain(data))
    analysis = analyse(scaled, data.split(8), PLAIN)
    small, _ = analysis.apply(RankPlan({curve.name: (len(curve.errors) - 1) // 2 for curve in analysis.curves}))
    same = copy.deepcopy(plain)
    for site in modules_of(scaled):
        small.get_submodule(site.linears[-1].name).weight.data *= 0.5  # much to mend
        replace_module(same, site.name, copy.deepcopy(small.get_submodule(site.name)))
        gamma = scaled.get_submodule(site.name.replace("attn", "ls1").replace("mlp", "ls2")).gamma.data
        layer = same.get_submodule(site.linears[-1].name)
        layer.weight.data *= gamma[:, None]
        layer.bias.data *= gamma
    ones = {site.linears[-1].name: torch.ones(17) for site in modules_of(scaled)}
    for model, other in ((scaled, small), (plain, same)):
        OutputRefit(ridges=(0.0,))(model, other, ones, data.split(8))
    with torch.no_grad():
        torch.testing.assert_close(small(data), same(data), atol=1e-4, rtol=1e-4)
        assert (small(data) - scaled(data)).abs().max() > 1e-2


def test_a_scale_of_zero_adds_nothing() -> None:
    """Weights stay finite, and the streams are those of both models."""
    torch.manual_seed(0)
    model, data = timm.create_model("vit_tiny_patch16_224", pretrained=False, **VIT, init_values=0.1).eval(), images(24)
    gammas = [parameter for name, parameter in model.named_parameters() if name.endswith("gamma")]
    for place, parameter in enumerate(gammas):  # what one branch cannot add, the streams may differ in by another
        parameter.data = torch.rand_like(parameter) + 0.5
        parameter.data[place % 3 :: 3] = 0
    small, weights = halved(model)
    for name, layer in small.named_modules():  # no weights of the output layers make up for inputs that say nothing
        if name.endswith(("qkv", "fc1")):
            layer.weight.data[-24:], layer.bias.data[-24:] = 0, 0
    check_refit(model, small, weights, data, 8, rtol=1e-4, atol=1e-4)
    assert all(parameter.isfinite().all() for parameter in small.parameters())


@torch.no_grad()
def refit_in_memory(model: nn.Module, small: nn.Module, sensitivities: dict[str, Tensor], data: Tensor) -> dict:
    """The refit of all images in one go, in float64: no files, no batches, and each smaller branch runs twice."""
    family, method, ridges = family_of(model), OutputRefit(), {}
    steps = family.steps(model)
    (x,) = first_inputs(model, next(iter(steps.values())), [data])
    y = x
    for name, step in steps.items():
        for old, new in zip(family.branches(step), family.branches(small.get_submodule(name)), strict=True):
            output = f"{name}.{old.output_name}"
            added, h = new.with_inputs(y)
            x = x + old.add(x)
            error, share = x - y - added, sensitivities[output] / sensitivities[output].sum()
            rows = (1 - method.sensitivity + method.sensitivity * len(share) * share).expand(len(x), -1)
            folds = [Regression.empty(h.shape[-1], x.shape[-1]) for _ in range(method.folds)]
            for index, fold in enumerate(folds):
                fold.add(*(each[index :: method.folds].flatten(0, 1) for each in (h, error, rows)))
            change, shift, ridges[output] = cross_validated(folds, method.ridges)
            new.output_layer.weight += change.T
            new.output_layer.bias += shift
            y = y + new.add(y)
    return ridges


def test_the_refit_is_the_one_in_memory_however_images_are_batched() -> None:
    """Which fold an image is in depends on its number among all of them, and not on its place in a batch."""
    model, data = model_and_images("vit")
    one, sensitivities = halved(model)
    expected = refit_in_memory(model, one, sensitivities, data)
    assert any(ridge is not None for ridge in expected.values())
    for sizes in ([6, 6, 6, 6], [7, 1, 9, 7], [1] * 24, [24]):
        other, _ = halved(model)
        assert OutputRefit()(model, other, sensitivities, data.split(sizes)) == expected
        for name, weight in one.state_dict().items():  # sums are of float32 products
            torch.testing.assert_close(other.state_dict()[name], weight, rtol=1e-4, atol=1e-4)
