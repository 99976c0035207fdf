"""VMamba as a family: its stream, its projections and MLPs, and its scans as units of one budget."""

import copy
from pathlib import Path

import pytest
import torch

from lowrank_vit import analyse, compress, get_recipe, load, save
from lowrank_vit.architectures.vmamba import mixers
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.scans import LEFT_OUT, SmallScan
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.stages.calibrate.stream import calibrate
from tests.support.cases import few
from tests.support.models import outputs
from tests.support.vmambas import ARGUMENTS, maps, vmamba

VERSIONS = sorted(ARGUMENTS)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_units_at_full_size_are_the_dense_model(version: str) -> None:
    model, images = vmamba(version).double(), maps(40).double()
    analysis = analyse(model, images.split(10), get_recipe("best").but(refit=False, measured=0), device="cpu")
    names = {curve.name for curve in analysis.curves}
    assert {f"{mixer}.scan" for mixer in mixers(model)} < names
    assert any("mlp.hidden" in name for name in names) == (version == "v2")
    full = {curve.name: len(curve.errors) - 1 if "hidden" in curve.name else None for curve in analysis.curves}
    whole, _ = analysis.apply(RankPlan(full))
    torch.testing.assert_close(whole(images), model(images), rtol=1e-7, atol=1e-7)
    assert analysis.fallback is None


def test_a_scan_that_is_left_out_keeps_the_skip_alone() -> None:
    model, images = vmamba(), maps(40)
    analysis = analyse(model, images.split(10), get_recipe("best").but(refit=False, measured=0), device="cpu")
    name = "layers.1.blocks.0.op.scan"
    small, report = analysis.apply(
        RankPlan({curve.name: 1 if curve.name == name else None for curve in analysis.curves})
    )
    expected = copy.deepcopy(model)
    mixer = expected.layers[1].blocks[0].op
    mixer.scan = SmallScan.of(mixer.scan, 24, LEFT_OUT)
    torch.testing.assert_close(small(images), expected(images))
    assert small.layers[0].blocks[0].op.scan.A_logs is not None
    entry = next(layer for layer in report["layers"] if layer["name"] == name)
    assert entry["params"] == 24
    assert entry["details"]["dense_params"] - 24 == parameter_count(model) - parameter_count(small)
    curve = next(curve for curve in analysis.curves if curve.name == name)
    assert curve.dense.macs == multiply_accumulates(model, (1, 8, 12)) - multiply_accumulates(small, (1, 8, 12))
    assert report["macs"]["scans"]["compressed"] < report["macs"]["scans"]["dense"]


def test_the_predicted_loss_is_its_definition() -> None:
    """``1/2 tr(G E E^T)`` with the mixer's outputs with and without the scan, and the loss's gradient there."""
    model, images = vmamba().double(), maps(30).double()
    analysis = analyse(model, [images], get_recipe("best").but(refit=False, measured=0), device="cpu")
    decomposed = next(each for each in analysis.decomposed if each.name == "layers.0.blocks.0.op.scan")
    block = model.layers[0].blocks[0]
    x = block.norm(model.patch_embed(images))
    left_out = copy.deepcopy(block.op)
    left_out.scan = SmallScan.of(block.op.scan, 12, LEFT_OUT)
    lost = (block.op(x) - left_out(x)).flatten(0, -2)
    change = lost.T @ lost / len(lost)
    site = decomposed.linears[-1]
    moments = calibrate(model, [site], {"gradient_second"}, [images], objective=analysis.recipe.objective)[site.name]
    root, _ = cholesky_root(moments.mean("gradient_second"), decomposed.method.gradient_damping)
    expected = 0.5 * (change @ root @ root.T).trace()
    torch.testing.assert_close(decomposed.found.loss[1], expected, rtol=1e-4, atol=0.0)
    energy = block.op(x).square().mean()
    before = decomposed.moments[decomposed.linears[0].name]
    assert decomposed.error(before) == pytest.approx(float(lost.square().mean() / energy), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("recipe", ["exact", "best"])
def test_a_compressed_model_is_saved_and_loaded(version: str, recipe: str, tmp_path: Path) -> None:
    model, images = vmamba(version), maps(24)
    small, report = compress(model, images.split(8), recipe, 0.3, held_out=[maps(8, seed=2)], device="cpu")
    assert parameter_count(small) == report["params"]["compressed"] <= 0.7 * report["params"]["dense"]
    assert "fallback" not in report
    if recipe == "best":
        kinds = {"relative_error", "relative_error_held_out"}
        assert all(layer[kind] is not None for layer in report["layers"] for kind in kinds)
        assert {entry["part"] for entry in report["measured_losses"]} >= {f"{name}.scan" for name in mixers(model)}
    known = {key: value for key, value in ARGUMENTS[version].items() if key != "num_classes"}
    save(small, tmp_path / "small", report, model_args=known)
    assert torch.equal(outputs(load(tmp_path / "small"), images), outputs(small, images))


@pytest.mark.parametrize("cost", few(["macs", "params", "bytes"], 1))
def test_budgets_are_met(cost: str) -> None:
    model, images = vmamba(), maps(24)
    recipe = get_recipe("best").but(measured=0)
    _, report = compress(model, images.split(8), recipe, budget={cost: 0.6}, device="cpu")
    assert report["budget"]["counted"] <= report["budget"]["limit"]
