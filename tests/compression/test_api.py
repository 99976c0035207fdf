"""The pipeline end to end on tiny models: sizes, errors and reports against what the compressed model really does."""

import json

import pytest
import torch

from lowrank_vit import compress, sweep
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.compression import calibrate as statistics
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.stages.compensate import COMPENSATIONS
from tests.support.cases import few, in_turn
from tests.support.models import images, inputs_of, same, tiny, weights

NAMES = sorted(name for name, recipe in RECIPES.items() if recipe.kinds == ["decomposition"])  # those: test_best


def quick(name: str) -> Recipe:
    """The recipe with few steps."""
    return get_recipe(name).but(steps=5)


@pytest.mark.parametrize(("kind", "name"), few(in_turn(["vit", "swin"], NAMES), 2))
class TestEveryRecipe:
    def test_report_says_what_the_model_is(self, name: str, kind: str) -> None:
        model, data = tiny(kind), images(24, kind)
        before = weights(model)
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
        assert same(model, before)
        biases = sum(site.out_features for site in find_sites(model) if site.bias)
        fixed = dense - sum(site.parameters for site in find_sites(model)) - biases
        assert sum(layer["params"] for layer in report["layers"]) + fixed + biases == parameter_count(compressed)
        assert any(layer["rank"] is not None for layer in report["layers"])

    def test_reported_error_is_the_deployed_layers(self, name: str, kind: str) -> None:
        model, data, unseen = tiny(kind), images(24, kind), images(16, kind, seed=5)
        compressed, report = compress(model, data.split(8), quick(name), 0.4, held_out=[unseen])
        for field, batch in (("relative_error", data), ("relative_error_held_out", unseen)):
            inputs = inputs_of(model, [layer["name"] for layer in report["layers"]], batch)
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
        assert same(compressed, alone)
        errors.append(sum(layer["relative_error"] for layer in report["layers"]))
    assert errors == sorted(errors)


def test_a_layer_without_bias_gets_one_and_pays_for_it() -> None:
    model = tiny("swin")
    _, report = compress(model, [images(8, "swin")], "exact", 0.02, sites=r"downsample\.reduction")
    (layer,) = report["layers"]
    assert layer["params"] == layer["rank"] * (32 + 16) + 16


@pytest.mark.parametrize(("name", "z"), in_turn(["paper", "exact"], COMPENSATIONS.names()))
def test_the_deployed_layer_is_the_sum_of_its_parts(z: str, name: str) -> None:
    """``x (U V^T + Z) + b``, whether Z joined U and V or stays beside them: the reported error says what U V^T + Z is."""
    model, data = tiny(), images(16)
    recipe = get_recipe(name).but(compensation=z, solver="closed_form", budget=0.1)
    compressed, report = compress(model, [data], recipe, 0.3)
    cut = [layer for layer in report["layers"] if layer["rank"] is not None]
    inputs = inputs_of(model, [layer["name"] for layer in cut], data)
    assert cut
    for layer in cut:
        deployed, linear = compressed.get_submodule(layer["name"]), model.get_submodule(layer["name"])
        assert (deployed.correction is None) == (z == "low_rank")
        assert layer["z"]["kind"] == z
        x = inputs[layer["name"]]
        with torch.no_grad():
            error = (deployed(x) - linear(x)).double().square().sum() / (x @ linear.weight.T).double().square().sum()
        assert layer["relative_error"] == pytest.approx(float(error), rel=2e-3, abs=1e-6)
