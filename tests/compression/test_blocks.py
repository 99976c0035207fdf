"""Recipe ``best`` end to end on tiny models: whole attention modules and MLPs, exact where nothing is removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import Analysis, InputError, analyse, compress, load, save
from lowrank_vit.cli.plot import dense_parameters
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.training.finetune import partial_parameters
from tests.support.models import ARGUMENTS, KINDS, images, modules_of, outputs, tiny

STEP = 33  # the costliest direction of either tiny model: 2 * 16 + 1


def analysed(model: nn.Module, data: Tensor, **options: object) -> Analysis:
    analysis = analyse(model, data.split(8), "best", **options)
    return analysis


def halves_of(model: nn.Module, data: Tensor, names: list[str]) -> dict[str, tuple[tuple, dict, Tensor]]:
    """Arguments and output of some modules in a forward pass."""
    found, hooks = {}, []
    for name in names:
        hook = model.get_submodule(name).register_forward_hook(
            lambda module, inputs, options, y, name=name: found.__setitem__(name, (inputs, options, y)),
            with_kwargs=True,
        )
        hooks.append(hook)
    outputs(model, data)
    for hook in hooks:
        hook.remove()
    return found


def unbiased(model: nn.Module) -> list[LowRankAttention]:
    """Name an attention module once for each of its heads that has lost its position biases with its directions."""
    found = [module for module in model.modules() if isinstance(module, LowRankAttention) and module.window_size]
    return [module for module in found for _ in range(len(module.value.widths) - len(module.live))]


@pytest.mark.parametrize("kind", KINDS)
class TestBest:
    def test_all_directions_and_units_are_the_model_as_it_was(self, kind: str) -> None:
        """In float64 and in the modules that are deployed, with windows, shifts, masks and position biases."""
        model, data = tiny(kind).double(), images(24, kind).double()
        analysis = analysed(model, data)
        compressed, report = analysis.apply(RankPlan({c.name: len(c.errors) - 1 for c in analysis.curves}))
        small = [type(compressed.get_submodule(layer["name"])) for layer in report["layers"]]
        assert set(small) == {LowRankAttention, SmallMlp}
        torch.testing.assert_close(outputs(compressed, data), outputs(model, data), atol=1e-9, rtol=1e-9)
        assert all(layer["relative_error"] < 1e-12 for layer in report["layers"])

    def test_only_the_logits_or_only_the_values_can_be_cut(self, kind: str) -> None:
        model, data = tiny(kind).double(), images(24, kind).double()
        analysis = analysed(model, data)
        dense = parameter_count(model)
        for part in ("query_key", "value", "hidden"):
            name = next(curve.name for curve in analysis.curves if curve.name.endswith(part))
            full = next(len(curve.errors) - 1 for curve in analysis.curves if curve.name == name)
            plan = {curve.name: None for curve in analysis.curves}
            same, _ = analysis.apply(RankPlan({**plan, name: full}))
            torch.testing.assert_close(outputs(same, data), outputs(model, data), atol=1e-9, rtol=1e-9)
            less, report = analysis.apply(RankPlan({**plan, name: full // 2}))
            assert report["params"]["compressed"] == parameter_count(less) < dense
            assert sum(layer["params"] < layer["details"]["dense_params"] for layer in report["layers"]) == 1

    @pytest.mark.parametrize("reduction", [0.2, 0.4, 0.6])
    def test_the_report_says_what_the_model_is(self, kind: str, reduction: float) -> None:
        model, data = tiny(kind), images(24, kind)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        compressed, report = compress(model, data.split(8), "best", reduction, held_out=[images(16, kind, seed=5)])
        dense = parameter_count(model)
        assert report["params"]["compressed"] == parameter_count(compressed) <= (1 - reduction) * dense
        gone = sum(m.relative_position_index.max() + 1 for m in unbiased(compressed))  # of heads without directions
        assert parameter_count(compressed) > (1 - reduction) * dense - STEP - gone
        assert report["macs"]["compressed"] == multiply_accumulates(compressed, data.shape[1:])
        assert report["macs"]["compressed"] < report["macs"]["dense"]
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert [layer["name"] for layer in report["layers"]] == [site.name for site in modules_of(model)]
        for layer in report["layers"]:
            module, details = compressed.get_submodule(layer["name"]), layer["details"]
            assert layer["params"] == parameter_count(module)
            assert dense_parameters(layer) == parameter_count(model.get_submodule(layer["name"]))
            if isinstance(module, LowRankAttention):
                assert details["query_key"] == sum(module.query_key.widths)
                assert details["value"] == layer["rank"] == sum(module.value.widths)
            elif isinstance(module, SmallMlp):
                assert layer["rank"] == details["hidden"] == module.fc1.out_features
            else:
                assert layer["rank"] is None
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_the_error_is_the_deployed_mlps(self, kind: str) -> None:
        model, data, unseen = tiny(kind).double(), images(24, kind).double(), images(16, kind, seed=5).double()
        compressed, report = analysed(model, data, held_out=[unseen]).compress(0.4)
        small = [n for n, module in compressed.named_modules() if isinstance(module, SmallMlp)]
        entries = {layer["name"]: layer for layer in report["layers"]}
        assert small
        for field, batch in (("relative_error", data), ("relative_error_held_out", unseen)):
            for name, (inputs, _, y) in halves_of(model, batch, small).items():
                energy = (y - model.get_submodule(name).fc2.bias.detach()).square().sum()
                error = float((outputs(compressed.get_submodule(name), *inputs) - y).square().sum() / energy)
                assert entries[name][field] == pytest.approx(error, rel=2e-3, abs=1e-9)

    def test_the_mean_input_of_the_output_layer_loses_nothing(self, kind: str) -> None:
        """What is lost on average is in the bias, before any refit: the mean hidden unit, the mean value of every head."""
        model, data = tiny(kind).double(), images(24, kind).double()
        analysis = analyse(model, data.split(8), get_recipe("best").but(refit=False))
        small, _ = analysis.apply(RankPlan({c.name: (len(c.errors) - 1) // 2 for c in analysis.curves}))
        for unit in analysis.units:
            site, units = unit.site, analysis.parts[unit.name]
            part = units[list(units)[-1]]
            kept = part.units.kept((len(part.units.loss) - 1) // 2)
            inputs = part.mean
            if isinstance(site, AttentionSite):
                qkv, basis = model.get_submodule(site.qkv.name), torch.block_diag(*part.basis)
                inputs = (part.mean - qkv.bias.data[-len(basis) :]) @ basis
                before = basis.T[kept] @ qkv.weight.data[-len(basis) :]
                balanced = small.get_submodule(site.name).key_value.weight.data[-len(kept) :]
                inputs[kept] *= balanced.norm(dim=1) / before.norm(dim=1)
            output = site.linears[-1].name
            with torch.no_grad():
                own, truth = small.get_submodule(output)(inputs[kept]), model.get_submodule(output)(part.mean)
            torch.testing.assert_close(own, truth, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_loaded_model_is_the_saved_one(self, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
        data = images(12, kind).to(dtype)
        compressed, _ = compress(tiny(kind).to(dtype), [data], "best", 0.4)
        save(compressed, tmp_path / "small", model_args=ARGUMENTS[kind])
        loaded = load(tmp_path / "small")
        assert torch.equal(outputs(loaded, data), outputs(compressed, data))
        for (name, one), other in zip(loaded.state_dict().items(), compressed.state_dict().values(), strict=True):
            assert torch.equal(one, other), name

    def test_keys_need_no_bias(self, kind: str) -> None:
        """Whatever the keys' bias is, the compressed model is the same."""
        results = []
        for shift in (0.0, 3.0):
            model, data = tiny(kind).double(), images(16, kind).double()
            for site in modules_of(model):
                if isinstance(site, AttentionSite):
                    inner = site.proj.in_features
                    model.get_submodule(site.qkv.name).bias.data[inner : 2 * inner] += shift
            compressed, _ = compress(model, [data], "best", 0.3)
            results.append(outputs(compressed, data))
        torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)

    def test_two_images_are_enough_to_run(self, kind: str) -> None:
        compressed, _ = compress(tiny(kind), [images(2, kind)], "best", 0.4)
        assert torch.isfinite(outputs(compressed, images(3, kind))).all()

    def test_ranks_can_be_snapped(self, kind: str) -> None:
        compressed, _ = compress(tiny(kind), [images(8, kind)], "best", 0.4)
        recipe = analysed(tiny(kind), images(8, kind)).recipe.but(rank_multiple=4)
        snapped, _ = compress(tiny(kind), [images(8, kind)], recipe, 0.4)
        for model, divides in ((compressed, False), (snapped, True)):
            widths = [m.fc1.out_features % 4 for m in model.modules() if isinstance(m, SmallMlp)]
            widths += [sum(m.query_key.widths) % 4 for m in model.modules() if isinstance(m, LowRankAttention)]
            assert (not any(widths)) == divides

    def test_partial_fine_tuning_finds_its_biases_and_no_position_table(self, kind: str) -> None:
        compressed, _ = compress(tiny(kind), [images(8, kind)], "best", 0.5)
        trained = set(partial_parameters(compressed))
        small = [name for name, module in compressed.named_modules() if isinstance(module, LowRankAttention)]
        assert small
        for name in small:
            assert {f"{name}.query.bias", f"{name}.proj.bias"} <= trained
            assert f"{name}.relative_position_bias_table" not in trained


def test_a_shifted_window_keeps_its_mask() -> None:
    """Module by module: the same inputs and the same mask, and a mask that matters."""
    model, data = tiny("swin").double(), images(8, "swin").double()
    analysis = analysed(model, data)
    compressed, _ = analysis.apply(RankPlan({c.name: len(c.errors) - 1 for c in analysis.curves}))
    names = [site.name for site in modules_of(model) if isinstance(site, AttentionSite)]
    masked = 0
    for name, (inputs, options, y) in halves_of(model, data, names).items():
        module = compressed.get_submodule(name)
        with torch.no_grad():
            torch.testing.assert_close(module(*inputs, **options), y, atol=1e-9, rtol=0)
            if options["mask"] is not None:
                assert (module(*inputs) - y).abs().max() > 1e-3
                masked += 1
    assert masked


def test_bad_requests_are_one_line() -> None:
    with pytest.raises(InputError, match="leave out --sites"):
        compress(tiny(), [images(4)], get_recipe("best").only("attention", "mlp"), 0.3, sites="mlp")
    with pytest.raises(InputError, match=r"out of reach: recipe 'best'"):
        compress(tiny(), [images(4)], "best", 0.99)
    compressed, _ = compress(tiny(), [images(4)], "best", 0.3)
    with pytest.raises(InputError, match="compressed or quantised already"):
        compress(compressed, [images(4)], "best", 0.3)


def test_a_saved_layer_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    compressed, _ = compress(tiny(), [images(4)], "best", 0.4)
    save(compressed, tmp_path / "small", model_args=ARGUMENTS["vit"])
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    layers = config["lowrank_vit"]["layers"]
    name = next(name for name, layer in layers.items() if layer.get("kind") == "attention")
    for change in ({"kind": "convolution"}, {"value": []}, {"query_key": [1, "x"]}, {"width": 3}):
        broken = {**layers, name: {**layers[name], **change}}
        text = json.dumps({**config, "lowrank_vit": {**config["lowrank_vit"], "layers": broken}})
        (tmp_path / "small" / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            load(tmp_path / "small")


def test_what_is_returned_is_balanced() -> None:
    """The two vectors of each direction have equal root mean squares: of queries and keys, of values and outputs."""
    small, _ = compress(tiny(), [images(8)], "best", 0.3)
    found = [module for module in small.modules() if isinstance(module, LowRankAttention)]
    assert found
    for module in found:
        keys, values = module.key_value.weight.split([module.query.out_features, module.proj.in_features])
        for one, other in ((module.query.weight, keys), (values, module.proj.weight.T)):
            torch.testing.assert_close(one.norm(dim=1) / one.shape[1] ** 0.5, other.norm(dim=1) / other.shape[1] ** 0.5)
