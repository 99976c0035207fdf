"""Recipe ``best`` end to end on tiny models: whole attention modules and MLPs, exact where nothing is removed."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import Analysis, analyse, compress
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from tests.support.models import KINDS, images, modules_of, outputs, tiny


def analysed(model: nn.Module, data: Tensor, **options: object) -> Analysis:
    analysis = analyse(model, data.split(8), "heads", **options)
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

    def test_the_mean_input_of_the_output_layer_loses_nothing(self, kind: str) -> None:
        """What is lost on average is in the bias, before any refit: the mean hidden unit, the mean value of every head."""
        model, data = tiny(kind).double(), images(24, kind).double()
        analysis = analyse(model, data.split(8), get_recipe("heads").but(refit=False))
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

    def test_keys_need_no_bias(self, kind: str) -> None:
        """Whatever the keys' bias is, the compressed model is the same."""
        results = []
        for shift in (0.0, 3.0):
            model, data = tiny(kind).double(), images(16, kind).double()
            for site in modules_of(model):
                if isinstance(site, AttentionSite):
                    inner = site.proj.in_features
                    model.get_submodule(site.qkv.name).bias.data[inner : 2 * inner] += shift
            compressed, _ = compress(model, [data], "heads", 0.3)
            results.append(outputs(compressed, data))
        torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


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
