"""Patch and position embeddings as units, and folded norms: budgets, losses, refit, and what is done with the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from lowrank_vit import Hardware, InputError, compress, distill, get_recipe, load, quantize, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.nested import check_nestable
from lowrank_vit.compression.outlook import outlook
from lowrank_vit.compression.recipe import recipe_of
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count, saved_bytes
from lowrank_vit.modules.embeddings import Positions
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import Replay
from tests.support.kinds import KINDS
from tests.support.models import ARGUMENTS, NAMES, VIT, images, model_and_images, outputs, tiny

UNITS = {"patches": "two_sided", "positions": "kronecker"}
ALL = get_recipe("best").but(**UNITS, folded=True)
PATCHES, POSITIONS = "patch_embed.proj.linear", "pos_embed"


def analysed(kind: str = "vit", **changes: Any) -> tuple[Analysis, torch.Tensor]:
    model, data = model_and_images(kind)
    return analyse(model, [data], ALL.but(**changes), device="cpu"), data


def plan(analysis: Analysis, **sizes: int) -> RankPlan:
    """Everything dense but some units."""
    return RankPlan({curve.name: sizes.get(curve.name) for curve in analysis.curves})


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_at_full_size_nothing_is_lost(kind: str) -> None:
    analysis, data = analysed(kind, refit=False, measured=0)
    full = {curve.name: len(curve.errors) - 1 for curve in analysis.curves}
    assert {PATCHES, POSITIONS} & set(full) == ({PATCHES, POSITIONS} if kind == "vit" else {PATCHES})
    small = analysis.resized(RankPlan(full))
    torch.testing.assert_close(outputs(small, data), outputs(analysis.dense, data), rtol=1e-8, atol=1e-8)
    whole = analysis.resized(plan(analysis))
    torch.testing.assert_close(outputs(whole, data), outputs(analysis.dense, data), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("unit", [PATCHES, POSITIONS])
def test_a_unit_is_measured_as_the_whole_model_says(unit: str) -> None:
    analysis, data = analysed(refit=False, measured=0)
    small, _ = analysis.apply(plan(analysis, **{unit: 2}))
    with Spill() as kept:
        replay = Replay(analysis.model, Classification(), data.split(5), 7, kept)
        found = replay.divergence(unit, small.get_submodule(unit))
    truth = divergences(Classification(), analysis.dense, [small], [data[:7]])[0]
    assert found == pytest.approx(truth, rel=1e-6)
    assert found > 0


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        ({"params": 0.6}, parameter_count),
        ({"macs": 0.7}, lambda model: multiply_accumulates(model, (1, 8, 8))),
        ({"bytes": 0.7}, lambda model: saved_bytes(model, torch.float64)),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"pivoted": True}])
def test_budgets_are_kept(budget: dict[str, float], count: Any, changes: dict[str, Any]) -> None:
    analysis, _ = analysed(measured=0, refit=False, **changes)
    small, report = analysis.compress(budget)
    (cost, share), whole = next(iter(budget.items())), count(analysis.dense)
    assert (share - 0.08) * whole <= count(small) <= share * whole
    told = {"params": "params", "macs": "macs", "bytes": "weights_bytes"}[cost]
    sizes = report[told]  # type: ignore[literal-required]
    assert (sizes["dense"], sizes["compressed"]) == (whole, count(small))
    for layer in report["layers"]:
        beside = 16 if layer["name"] == PATCHES else 0  # a bias is not compressed
        assert layer["params"] + beside == parameter_count(small.get_submodule(layer["name"]))


def test_folded_norms_buy_directions() -> None:
    """Two blocks of two norms with scale and shift of 16: 128 parameters of the same function."""
    plain, folded = (analysed(measured=0, refit=False, folded=share)[0] for share in (False, True))
    sizes = [sum(size or 0 for size in each.plan(0.4).ranks.values()) for each in (plain, folded)]
    assert parameter_count(plain.model) - parameter_count(folded.model) == 128
    assert sizes[1] > sizes[0]
    told = [outlook(each, [0.4])["sizes"][0] for each in (plain, folded)]
    assert told[1]["predicted_loss"] < told[0]["predicted_loss"]
    assert told[1]["parameters"] == parameter_count(folded.resized(folded.plan(0.4)))


def test_the_refit_sees_what_smaller_embeddings_give() -> None:
    """With nothing else reduced, the first outputs make up for a part of what the embeddings have lost."""
    analysis, data = analysed(measured=0)
    cut = plan(analysis, **{PATCHES: 1, POSITIONS: 1})
    models = [replace(analysis, recipe=analysis.recipe.but(refit=refit)).apply(cut)[0] for refit in (False, True)]
    before, after = divergences(Classification(), analysis.dense, models, [data])
    assert after < 0.95 * before


def test_it_is_saved_loaded_exported_and_quantised(tmp_path: Path) -> None:
    model, data = tiny(), images(16)
    analysis = analyse(model, [data], ALL, device="cpu")
    small, report = analysis.apply(RankPlan({curve.name: max(1, len(curve.errors) // 2) for curve in analysis.curves}))
    assert recipe_of(report["recipe_fields"]) == analysis.recipe
    assert [layer["rank"] for layer in report["layers"] if layer["name"] in (PATCHES, POSITIONS)] == [2, 8]
    save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    loaded = load(tmp_path / "small")
    assert outputs(loaded, data).equal(outputs(small, data))
    program = torch.export.export(small, (data,))
    torch.testing.assert_close(outputs(program.module(), data), outputs(small, data))
    rounded, _ = quantize(loaded, 8)
    assert (outputs(rounded, data) - outputs(small, data)).norm() < 0.05 * outputs(small, data).norm()
    quantized = [name for name, module in rounded.named_modules() if isinstance(module, QuantizedLinear)]
    assert quantized
    assert all(name.startswith("blocks.") for name in quantized)  # the embeddings are rounded to float16
    save(rounded, tmp_path / "rounded", model_args=ARGUMENTS["vit"])
    assert outputs(load(tmp_path / "rounded"), data).equal(outputs(rounded, data))


def test_it_is_distilled_in_all_its_weights() -> None:
    model, data = tiny(), images(16)
    small, _ = compress(model, [data], ALL, 0.5, device="cpu")
    before = {name: value.detach().clone() for name, value in small.named_parameters()}
    distill(small, model, data, epochs=1, hardware=Hardware(accelerator="cpu"), progress=False)
    assert all(not value.equal(before[name]) for name, value in small.named_parameters() if name.startswith("p"))


def test_other_positions_stay() -> None:
    """A table that is resampled for every image's size is no fixed product, and without patches nothing is made of them."""
    model = timm.create_model(NAMES["vit"][0], **VIT, dynamic_img_size=True).eval()
    analysis = analyse(model, [images(8)], ALL.but(patches=False, measured=0, refit=False), device="cpu")
    assert all(unit.name.startswith("blocks.") for unit in analysis.units)
    assert not any(isinstance(module, Positions) for module in analysis.model.modules())


@pytest.mark.parametrize(("changes", "said"), [({"folded": True}, "folded norms"), (UNITS, "smaller embeddings")])
def test_it_cannot_be_nested(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_nestable(get_recipe("loss_aware").but(**changes))


def test_single_layers_beside_embeddings_are_no_fallback() -> None:
    """Nothing of a module with a gate on its values is asked for as a whole."""
    model, data = KINDS["value norm"].make(), KINDS["value norm"].images(4)
    analysis = analyse(model, [data], get_recipe("loss_aware").but(patches="two_sided"), device="cpu")
    assert analysis.fallback is None
    assert analysis.units[0].name == PATCHES
