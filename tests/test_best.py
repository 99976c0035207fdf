"""Recipe ``best`` end to end on tiny models: whole attention modules and MLPs, exact where nothing is removed."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, analyse, compress, load, save
from lowrank_vit.attention import Heads, LowRankAttention
from lowrank_vit.blocks import BlockAnalysis
from lowrank_vit.calibrate import calibrate
from lowrank_vit.cost import multiply_accumulates, parameter_count
from lowrank_vit.finetune import partial_parameters
from lowrank_vit.halves import find_halves
from lowrank_vit.layers import SmallMlp
from lowrank_vit.parts import AttentionSite, last_part
from lowrank_vit.plot import dense_parameters
from lowrank_vit.recipes import get_recipe
from lowrank_vit.records import RankPlan
from tests.models import NAMES, VIT, images, tiny

KINDS = sorted(NAMES)
ARGUMENTS = {kind: {k: v for k, v in NAMES[kind][1].items() if k != "num_classes"} for kind in KINDS}
STEP = 33  # the costliest direction of either tiny model: 2 * 16 + 1


def analysed(model: nn.Module, data: Tensor, **options: object) -> BlockAnalysis:
    analysis = analyse(model, data.split(8), "best", **options)
    assert isinstance(analysis, BlockAnalysis)
    return analysis


def outputs(model: nn.Module, data: Tensor) -> Tensor:
    with torch.no_grad():
        return model(data)


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
        assert parameter_count(compressed) > (1 - reduction) * dense - STEP
        assert report["macs"]["compressed"] == multiply_accumulates(compressed, data.shape[1:])
        assert report["macs"]["compressed"] < report["macs"]["dense"]
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert [layer["name"] for layer in report["layers"]] == [site.name for site in find_halves(model)]
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
        assert isinstance(analysis, BlockAnalysis)
        small, _ = analysis.apply(RankPlan({c.name: (len(c.errors) - 1) // 2 for c in analysis.curves}))
        for site in analysis.sites:
            part = analysis.parts[f"{site.name}.{last_part(site)}"]
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
            for site in find_halves(model):
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
    names = [site.name for site in find_halves(model) if isinstance(site, AttentionSite)]
    masked = 0
    for name, (inputs, options, y) in halves_of(model, data, names).items():
        module = compressed.get_submodule(name)
        with torch.no_grad():
            torch.testing.assert_close(module(*inputs, **options), y, atol=1e-9, rtol=0)
            if options["mask"] is not None:
                assert (module(*inputs) - y).abs().max() > 1e-3
                masked += 1
    assert masked


def test_ragged_heads_split_and_join() -> None:
    heads, x = Heads([3, 0, 2], 4), torch.randn(2, 4, 5)
    split = heads.split(x)
    assert split.shape == (2, 3, 4, 4)
    assert torch.equal(split[:, 0, :, :3], x[..., :3])
    assert torch.equal(split[:, 2, :, :2], x[..., 3:])
    assert split[:, 1].abs().sum() == split[:, 2, :, 2:].abs().sum() == split[:, 0, :, 3].abs().sum() == 0
    assert torch.equal(heads.join(split), x)
    equal, x = Heads([3, 3], 3), torch.randn(2, 4, 6)
    assert torch.equal(equal.split(x)[:, 1], x[..., 3:])
    assert torch.equal(equal.join(equal.split(x)), x)


def test_heads_of_unequal_widths_are_softmax_attention() -> None:
    """Head by head, by its definition, with a scale that is nobody's default; one head passes nothing on."""
    torch.manual_seed(0)
    module = LowRankAttention(6, [3, 1, 2], [2, 4, 0], scale=0.37).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        q, (k, v) = module.query(x), module.key_value(x).split([6, 6], -1)
        heads = zip(q.split([3, 1, 2], -1), k.split([3, 1, 2], -1), v.split([2, 4, 0], -1), strict=True)
        mixed = [(0.37 * q @ k.mT).softmax(-1) @ v for q, k, v in heads]
        truth = torch.cat(mixed, -1) @ module.proj.weight.T + module.proj.bias
        torch.testing.assert_close(module(x), truth)


def test_balanced_directions_of_the_same_attention() -> None:
    """The vectors of a direction have one size, one that nothing reads stays finite, and the output is the same."""
    torch.manual_seed(0)
    module = LowRankAttention(6, [3, 1], [2, 4], scale=0.37).double()
    module.proj.weight.data *= 1e-3
    module.key_value.weight.data[1] = 0
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)
        module.balance()
        torch.testing.assert_close(module(x), before, rtol=1e-12, atol=1e-15)
    keys, values = (rows.square().mean(1) for rows in module.key_value.weight.split([4, 6]))
    torch.testing.assert_close(values, module.proj.weight.square().mean(0))
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(keys[others], module.query.weight.square().mean(1)[others])
    assert keys[1] == 0


def test_statistics_leave_no_graph_behind() -> None:
    """A hook that held its own output would keep every batch's graph in memory."""
    model, alive = tiny(), []
    model.blocks[0].attn.qkv.register_forward_hook(lambda m, x, y: alive.append(weakref.ref(y)))
    sites = [linear for site in find_halves(model) for linear in site.linears]
    needs = {site.name: {"head_fisher"} if site.heads else {"gradient_second"} for site in sites}
    gc.disable()
    try:
        calibrate(model, sites, needs, images(8).split(2))
        assert len(alive) == 4
        assert all(ref() is None for ref in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {**VIT, "qk_norm": True}, r"'blocks\.0\.attn' normalises its queries \(q_norm\)"),
        ("vit_tiny_patch16_224", {**VIT, "scale_attn_norm": True}, r"'blocks\.0\.attn' normalises its values"),
        ("vit_tiny_patch16_224", {**VIT, "scale_mlp_norm": True}, r"'blocks\.0\.mlp' normalises its hidden"),
        ("vit_tiny_patch16_224", {**VIT, "attn_layer": "diff"}, r"'blocks\.0\.attn\.qkv' belongs to .*DiffAttention"),
        ("eva02_tiny_patch14_224", {"depth": 1}, r"'blocks\.0\.attn\.qkv' belongs to .*EvaAttention"),
        ("beit_base_patch16_224", {"depth": 1}, r"'blocks\.0\.attn\.qkv' belongs to timm\.models\.beit\.Attention"),
    ],
)
def test_what_it_cannot_keep_is_refused_by_name(name: str, arguments: dict, message: str) -> None:
    model = timm.create_model(name, pretrained=False, **arguments)
    with pytest.raises(InputError, match=rf"{message}.*: choose a recipe for single layers"):
        compress(model, [images(4)], "best", 0.3)


def test_gates_are_refused_by_name() -> None:
    model = tiny()
    model.blocks[1].attn.gate = nn.Linear(16, 16)
    with pytest.raises(InputError, match=r"'blocks\.1\.attn' gates its values"):
        compress(model, [images(4)], "best", 0.3)


def test_bad_requests_are_one_line() -> None:
    with pytest.raises(InputError, match="leave out --sites"):
        compress(tiny(), [images(4)], "best", 0.3, sites="mlp")
    with pytest.raises(InputError, match=r"out of reach: recipe 'best'"):
        compress(tiny(), [images(4)], "best", 0.99)
    compressed, _ = compress(tiny(), [images(4)], "best", 0.3)
    with pytest.raises(InputError, match="belongs to"):
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
