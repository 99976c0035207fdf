"""Embeddings as units, folded norms and pivoted factors: the same functions, budgets, refit, and what comes after."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_vit import Hardware, compress, distill, get_recipe, load, quantize, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.compress import analyse
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count, saved_bytes
from lowrank_vit.modules.pivoted_linear import PivotedLinear
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.runtime.lightning_run import train
from tests.support.cases import in_turn
from tests.support.models import ARGUMENTS, KINDS, images, model_and_images, outputs, tiny

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


@pytest.mark.parametrize(
    ("budget", "count", "pivoted"),
    [
        ({"params": 0.6}, parameter_count, True),
        ({"macs": 0.7}, lambda model: multiply_accumulates(model, (1, 8, 8)), False),
        ({"bytes": 0.7}, lambda model: saved_bytes(model, torch.float64), True),
    ],
)
def test_budgets_are_kept(budget: dict[str, float], count: Any, pivoted: bool) -> None:
    analysis, _ = analysed(measured=0, refit=False, pivoted=pivoted)
    small, report = analysis.compress(budget)
    (cost, share), whole = next(iter(budget.items())), count(analysis.dense)
    assert (share - 0.08) * whole <= count(small) <= share * whole
    told = {"params": "params", "macs": "macs", "bytes": "weights_bytes"}[cost]
    sizes = report[told]  # type: ignore[literal-required]
    assert (sizes["dense"], sizes["compressed"]) == (whole, count(small))
    for layer in report["layers"]:
        beside = 16 if layer["name"] == PATCHES else 0  # a bias is not compressed
        assert layer["params"] + beside == parameter_count(small.get_submodule(layer["name"]))


def test_the_refit_sees_what_smaller_embeddings_give() -> None:
    """With nothing else reduced, the first outputs make up for a part of what the embeddings have lost."""
    analysis, data = analysed(measured=0)
    cut = plan(analysis, **{PATCHES: 1, POSITIONS: 1})
    models = [replace(analysis, recipe=analysis.recipe.but(refit=refit)).apply(cut)[0] for refit in (False, True)]
    before, after = divergences(Classification(), analysis.dense, models, [data])
    assert after < 0.95 * before


PIVOTED = ("exact", "loss_aware", "heads")


@pytest.mark.parametrize(("kind", "recipe"), in_turn(KINDS, PIVOTED))
def test_a_plan_makes_the_same_function_of_fewer_parameters(recipe: str, kind: str) -> None:
    model, batch = model_and_images(kind)
    plain = analyse(model, [batch], recipe, device="cpu")
    pivoted = analyse(model, [batch], get_recipe(recipe).but(pivoted=True), device="cpu")
    plan = replace(plain.plan(0.4), pivoted=None)
    (small, _), (smaller, report) = plain.apply(plan), pivoted.apply(plan)
    with torch.no_grad():
        torch.testing.assert_close(smaller(batch), small(batch))
    heads = [module.widths for module in smaller.modules() if isinstance(module, PivotedLinear)]
    assert heads
    saved = sum(width**2 for widths in heads for width in widths)
    assert parameter_count(smaller) == parameter_count(small) - saved == report["params"]["compressed"]
    for layer in report["layers"]:
        counted = parameter_count(smaller.get_submodule(layer["name"]))
        assert layer["params"] == counted - (
            0 if recipe == "heads" else layer["out_features"]
        )  # a bias is not compressed


def test_it_is_saved_loaded_and_quantised(tmp_path: Path) -> None:
    model, batch = tiny("vit"), images(16)
    small, report = compress(model, [batch], get_recipe("heads").but(pivoted=True), 0.4, device="cpu")
    save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    loaded = load(tmp_path / "small")
    with torch.no_grad():
        assert loaded(batch).equal(small(batch))
        rounded, _ = quantize(loaded, 8)
        assert not any(isinstance(module, PivotedLinear) for module in rounded.modules())
        error = (rounded(batch) - small(batch)).norm() / small(batch).norm()
    assert 0 < error < 0.05


@pytest.mark.slow
def test_it_is_distilled_in_all_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("vit"), images(16)
    small, _ = compress(model, [batch], get_recipe("heads").but(pivoted=True), 0.4, device="cpu")
    before, count = small(batch).detach(), parameter_count(small)
    widths = [width for module in small.modules() if isinstance(module, PivotedLinear) for width in module.widths]
    trained_counts = []

    def seen(module: Any, **options: Any) -> None:
        trained_counts.append(parameter_count(module.model))
        train(module, **options)

    monkeypatch.setattr("lowrank_vit.stages.training.distill.train", seen)
    trained = distill(small, model, batch, epochs=1, hardware=Hardware(accelerator="cpu"), progress=False)
    assert trained_counts == [count + sum(width**2 for width in widths)]
    assert trained.model is small
    assert parameter_count(small) == count
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert not small(batch).equal(before)
