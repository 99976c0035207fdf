"""The pipeline end to end on tiny models: sizes, errors and reports against what the compressed model really does."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, compress, sweep
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.compression import calibrate as statistics
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.linalg.pairs import balance
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.stages.compensate import COMPENSATIONS
from tests.support.models import images, tiny

NAMES = sorted(name for name, recipe in RECIPES.items() if recipe.kinds == ["decomposition"])  # those: test_best


def quick(name: str) -> Recipe:
    """The recipe with few steps."""
    return get_recipe(name).but(steps=5)


def layer_inputs(model: nn.Module, data: Tensor) -> dict[str, Tensor]:
    found, hooks = {}, []
    for site in find_sites(model):
        hook = get_linear(model, site).register_forward_hook(
            lambda module, inputs, output, name=site.name: found.__setitem__(name, inputs[0].detach().flatten(0, -2))
        )
        hooks.append(hook)
    with torch.no_grad():
        model(data)
    for hook in hooks:
        hook.remove()
    return found


def test_something_is_registered() -> None:
    assert {"svd", "fwsvd", "asvd", "svd_llm", "aafm", "paper", "exact", "loss_aware"} <= set(NAMES)


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("name", NAMES)
class TestEveryRecipe:
    def test_report_says_what_the_model_is(self, name: str, kind: str) -> None:
        model, data = tiny(kind), images(24, kind)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        compressed, report = compress(model, data.split(8), quick(name), 0.4, held_out=[images(16, kind, seed=5)])
        dense = parameter_count(model)
        assert report["params"]["dense"] == dense
        assert report["params"]["compressed"] == parameter_count(compressed) <= 0.6 * dense
        assert parameter_count(compressed) > 0.6 * dense - 48  # one rank of the widest layer
        size = data.shape[1:]
        assert report["macs"] == {
            "dense": multiply_accumulates(model, size),
            "compressed": multiply_accumulates(compressed, size),
        }
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])
        biases = sum(site.out_features for site in find_sites(model) if site.bias)
        fixed = dense - sum(site.parameters for site in find_sites(model)) - biases
        assert sum(layer["params"] for layer in report["layers"]) + fixed + biases == parameter_count(compressed)
        assert any(layer["rank"] is not None for layer in report["layers"])

    def test_reported_error_is_the_deployed_layers(self, name: str, kind: str) -> None:
        model, data, unseen = tiny(kind), images(24, kind), images(16, kind, seed=5)
        compressed, report = compress(model, data.split(8), quick(name), 0.4, held_out=[unseen])
        for field, batch in (("relative_error", data), ("relative_error_held_out", unseen)):
            inputs = layer_inputs(model, batch)
            for layer in report["layers"]:
                if layer["rank"] is None:
                    assert layer[field] == 0
                    continue
                x = inputs[layer["name"]]
                linear, deployed = model.get_submodule(layer["name"]), compressed.get_submodule(layer["name"])
                with torch.no_grad():
                    error = (deployed(x) - linear(x)).double().square().sum()
                    energy = (x @ linear.weight.T).double().square().sum()
                assert layer[field] == pytest.approx(float(error / energy), rel=2e-3, abs=1e-6)


def test_a_sweep_reuses_one_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, reductions, calls = tiny(), images(24), (0.2, 0.4, 0.6), []
    monkeypatch.setattr(statistics, "calibrate", lambda *a, **k: calls.append(a) or calibrate(*a, **k))
    errors, models = [], list(sweep(model, [data], "exact", reductions))
    assert len(calls) == 1
    for reduction, (compressed, report) in zip(reductions, models, strict=True):
        alone, _ = compress(model, [data], "exact", reduction)
        for (key, one), other in zip(compressed.state_dict().items(), alone.state_dict().values(), strict=True):
            assert torch.equal(one, other), key
        errors.append(sum(layer["relative_error"] for layer in report["layers"]))
    assert errors == sorted(errors)


@pytest.mark.parametrize("recipe", ["exact", "best"])
def test_a_sweep_refuses_before_it_begins(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "calibrate", lambda *a, **k: pytest.fail("images were gone through"))
    with pytest.raises(InputError, match=r"0\.999 is out of reach"):
        sweep(tiny(), [images(4)], recipe, [0.3, 0.999])


@pytest.mark.parametrize("name", ["exact", "svd_llm"])
def test_full_rank_leaves_the_output_as_it_is(name: str) -> None:
    """A tiny reduction leaves most layers dense or nearly of full rank."""
    model, data = tiny().double(), images(24).double()
    compressed, _ = compress(model, [data], name, 0.001)
    with torch.no_grad():
        torch.testing.assert_close(compressed(data), model(data), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_two_images_are_enough_to_run(name: str) -> None:
    _, report = compress(tiny(), [images(2)], quick(name), 0.3)
    assert all(layer["details"]["ridge"] >= 0 for layer in report["layers"])
    json.dumps(report, allow_nan=False)


def test_a_rank_deficient_layer_reports_its_ridge() -> None:
    _, report = compress(tiny(), [images(1)], "exact", 0.3)
    fc1 = next(layer for layer in report["layers"] if layer["name"] == "blocks.1.mlp.fc1")
    assert fc1["details"]["ridge"] == 0  # 17 tokens for 16 inputs
    _, report = compress(tiny(), [torch.zeros(4, 1, 8, 8)], "exact", 0.3)
    assert max(layer["details"]["ridge"] for layer in report["layers"]) > 0


@pytest.mark.parametrize("reduction", [0.0, 1.0, 0.97, -0.1, float("nan")])
def test_a_reduction_out_of_reach_names_the_range(reduction: float) -> None:
    with pytest.raises(InputError, match=r"out of reach: .* from 0 \(not included\) to 0\.\d+"):
        compress(tiny(), [images(4)], "svd", reduction)


def test_the_largest_reduction_that_is_named_is_reached() -> None:
    with pytest.raises(InputError) as refused:
        compress(tiny(), [images(4)], "svd", 0.99)
    largest = float(str(refused.value).rsplit(" ", 1)[1])
    _, report = compress(tiny(), [images(4)], "svd", largest)
    assert all(layer["rank"] == 1 for layer in report["layers"])


def test_bad_names_are_one_line() -> None:
    with pytest.raises(InputError, match="did you mean 'exact'"):
        compress(tiny(), [images(4)], "exat", 0.3)
    with pytest.raises(InputError, match="no linear layer"):
        compress(tiny(), [images(4)], "svd", 0.3, sites="nothing")
    with pytest.raises(InputError, match="not a regular expression"):
        compress(tiny(), [images(4)], "svd", 0.3, sites="(")
    with pytest.raises(InputError, match="device 'tpu9' cannot be used"):
        compress(tiny(), [images(4)], "svd", 0.3, device="tpu9")


def test_sites_can_be_chosen() -> None:
    _, report = compress(tiny("swin"), [images(4, "swin")], "svd", 0.1, sites=r"downsample\.reduction|mlp")
    names = [layer["name"] for layer in report["layers"]]
    assert any("reduction" in name for name in names)
    assert not any("attn" in name for name in names)


def test_a_layer_without_bias_gets_one_and_pays_for_it() -> None:
    model = tiny("swin")
    _, report = compress(model, [images(8, "swin")], "exact", 0.02, sites=r"downsample\.reduction")
    (layer,) = report["layers"]
    assert layer["params"] == layer["rank"] * (32 + 16) + 16


def test_balanced_factors_have_equal_diagonal_gram_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(size, 5, generator=generator, dtype=torch.float64) * 100 for size in (9, 12))
    left, right = balance(u, v / 1e4)
    torch.testing.assert_close(left @ right.T, u @ v.T / 1e4)
    torch.testing.assert_close(left.T @ left, right.T @ right)
    assert (left.T @ left - torch.diag((left.T @ left).diagonal())).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["paper", "exact"])  # the latter puts the mean of what is lost into the bias
@pytest.mark.parametrize("z", COMPENSATIONS.names())
def test_the_deployed_layer_is_the_sum_of_its_parts(z: str, name: str) -> None:
    """``x (U V^T + Z) + b``, whether Z joined U and V or stays beside them: the reported error says what U V^T + Z is."""
    model, data = tiny(), images(16)
    recipe = get_recipe(name).but(compensation=z, solver="closed_form", budget=0.1)
    compressed, report = compress(model, [data], recipe, 0.3)
    inputs = layer_inputs(model, data)
    cut = [layer for layer in report["layers"] if layer["rank"] is not None]
    assert cut
    for layer in cut:
        deployed, linear = compressed.get_submodule(layer["name"]), model.get_submodule(layer["name"])
        assert (deployed.correction is None) == (z == "low_rank")
        assert layer["z"]["kind"] == z
        x = inputs[layer["name"]]
        with torch.no_grad():
            error = (deployed(x) - linear(x)).double().square().sum() / (x @ linear.weight.T).double().square().sum()
        assert layer["relative_error"] == pytest.approx(float(error), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("z", COMPENSATIONS.names())
def test_z_lowers_the_mean_of_the_images_relative_errors(z: str) -> None:
    """The losses of Z are (10), ``E_i[||X_i (W - U V^T - Z)||^2 / ||X_i W||^2]``, on images of very different strength."""
    model, data = tiny(), images(16) * torch.logspace(-1, 1, 16)[:, None, None, None]
    recipe = get_recipe("paper").but(compensation=z, solver="closed_form", budget=0.1)
    compressed, report = compress(model, [data], recipe, 0.3)
    inputs = layer_inputs(model, data)
    for layer in (layer for layer in report["layers"] if layer["rank"] is not None):
        deployed, linear = compressed.get_submodule(layer["name"]), model.get_submodule(layer["name"])
        x = inputs[layer["name"]].unflatten(0, (len(data), -1))
        with torch.no_grad():
            errors = (deployed(x) - linear(x)).double().square().sum((1, 2))
            energies = (x @ linear.weight.T).double().square().sum((1, 2))
        assert layer["z"]["loss"] == pytest.approx(float((errors / energies).mean()), rel=2e-3, abs=1e-6)
