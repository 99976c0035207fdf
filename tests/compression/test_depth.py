"""Attention modules and MLPs as units, exact where nothing is removed; the model up to a block, with a new classifier."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import analyse, compress, get_recipe, load, save
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.skipped import Skipped
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import AttentionSite
from lowrank_vit.stages.correct.output_refit import ClassifierRefit
from tests.support.cases import few
from tests.support.models import ARGUMENTS, KINDS, images, modules_of, outputs, tiny


def features(model: nn.Module, blocks: int, data: torch.Tensor) -> torch.Tensor:
    """What the classifier of a plain ViT is given if the last blocks are left out."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(data)))
    for block in model.blocks[:blocks]:
        x = block(x)
    return model.forward_head(model.norm(x), pre_logits=True)


def test_it_is_the_model_up_to_a_block() -> None:
    model, data = tiny().double(), images(24).double()
    small, report = compress(model, data.split(8), get_recipe("wd-depth").but(refit=False), 0.3, held_out=[data[:4]])
    with torch.no_grad():
        torch.testing.assert_close(outputs(small, data), model.head(features(model, 1, data)))
    block = parameter_count(model.blocks[1])
    assert parameter_count(model) - parameter_count(small) == block
    assert report["layers"][0]["details"] == {"depth": 1, "depth_of": 2}
    assert report["layers"][0]["params"] == parameter_count(model.blocks[0])


def test_the_classifier_is_the_ridge_regression_of_what_is_missing() -> None:
    """One ridge; the normal equations of centred features, solved densely."""
    model, data = tiny().double(), images(48).double()
    recipe = get_recipe("wd-depth").but(refit=ClassifierRefit(ridges=(0.1,)))
    small, report = compress(model, data.split(8), recipe, 0.3, held_out=[images(16, seed=5).double()])
    assert report["refit"]["ridges"] == {"head": 0.1}
    with torch.no_grad():
        given = features(model, 1, data)
        missing = model(data) - model.head(given)
        centred, scale = given - given.mean(0), given.square().mean()
        system = centred.T @ centred / 48 + 0.1 * scale * torch.eye(16)
        change = torch.linalg.solve(system, centred.T @ (missing - missing.mean(0)) / 48)
    torch.testing.assert_close(small.head.weight, model.head.weight + change.T, rtol=1e-4, atol=1e-5)
    shift = missing.mean(0) - given.mean(0) @ change
    torch.testing.assert_close(small.head.bias, model.head.bias + shift, rtol=1e-4, atol=1e-5)
    assert report["refit"]["kl_held_out"] < report["refit"]["kl_held_out_before"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_counted_and_loaded_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    """A Swin loses blocks across its stages; the steps between them stay."""
    model, data = tiny(kind), images(16, kind)
    analysis = analyse(model, data.split(8), "wd-depth")
    (curve,) = analysis.curves
    most = len(curve.errors) - 1
    for kept in {1, most - 1}:
        small, report = analysis.apply(RankPlan({curve.name: kept}))
        assert sum(isinstance(module, Skipped) for module in small.modules()) == most - kept
        assert parameter_count(model) - parameter_count(small) == curve.cost(None) - curve.cost(kept)
        assert report["macs"]["compressed"] == multiply_accumulates(small, data.shape[1:]) < report["macs"]["dense"]
        save(small, tmp_path / str(kept), report, model_args=ARGUMENTS[kind])
        assert torch.equal(outputs(load(tmp_path / str(kept)), data), outputs(small, data))


def test_costs_of_blocks_in_multiply_accumulates_are_kept_within() -> None:
    model, data = tiny("swin"), images(16, "swin")
    _, report = compress(model, data.split(8), "wd-depth", budget={"macs": 0.7})
    assert report["macs"]["compressed"] <= 0.7 * report["macs"]["dense"]


@pytest.mark.parametrize("kind", few(KINDS, 1))
class TestBest:
    def test_only_the_logits_or_only_the_values_can_be_cut(self, kind: str) -> None:
        model, data = tiny(kind).double(), images(24, kind).double()
        analysis = analyse(model, data.split(8), "heads")
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
