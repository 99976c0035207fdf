"""Recipes with pivoted factors: the same functions, with more directions for the same parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_vit import Hardware, compress, distill, get_recipe, load, quantize, save
from lowrank_vit.compression.compress import analyse
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.pivoted_linear import PivotedLinear
from lowrank_vit.runtime.lightning_run import train
from tests.support.cases import in_turn
from tests.support.models import ARGUMENTS, KINDS, images, model_and_images, tiny

RECIPES = ("exact", "loss_aware", "heads")


@pytest.mark.parametrize(("kind", "recipe"), in_turn(KINDS, RECIPES))
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
