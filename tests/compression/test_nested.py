"""Nested folders: opened at any reduction they are, bit by bit, what compressing to it gives; or the recipe is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, analyse, compress, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import check_nestable
from lowrank_vit.compression.recipe import SINGLE, Recipe
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.pivoted_linear import PivotedLinear
from lowrank_vit.stages.compensate import COMPENSATIONS
from tests.support.cases import few
from tests.support.models import ARGUMENTS, images, tiny

REFUSED = {
    "paper": "solver 'minibatch'",
    "paper_charitable": "solver 'minibatch'",
    "paper_literal": "solver 'minibatch'",
    **dict.fromkeys(("aafm", "flar", "fwsvd_search", "asvd_search"), "measured on the images"),
    **dict.fromkeys(("comcat0", "comcat"), "units are fitted anew for every choice"),
    **dict.fromkeys(("ssp", "vtp-taylor", "vbp", "corp"), "units are fitted anew for every choice"),
}


def analysed(recipe: str | Recipe, kind: str = "vit") -> Analysis:
    """An analysis of random images, with an error on unseen ones."""
    found = analyse(tiny(kind), [images(12, kind)], recipe, held_out=[images(6, kind, seed=7)])
    assert isinstance(found, Analysis)
    return found


def nested(folder: Path, recipe: str | Recipe, kind: str = "vit", reduction: float = 0.3) -> Analysis:
    """A nested folder, and what it was made from."""
    analysis = analysed(recipe, kind)
    save(analysis.compress(reduction)[0], folder, model_args=ARGUMENTS[kind], nested=analysis)
    return analysis


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


def nestable() -> list[Recipe]:
    """Every recipe for single layers that is not refused as it is, and what the refused ones become by another solver."""
    plain = [recipe for name, recipe in RECIPES.items() if name not in REFUSED and set(recipe.units) == {SINGLE}]
    kinds = COMPENSATIONS.names()
    z = [get_recipe("paper").but(solver="closed_form", compensation=kind) for kind in kinds]
    return [*plain, *z, get_recipe("paper").but(solver="moments", steps=5), get_recipe("exact").but(rank_multiple=3)]


def test_every_recipe_is_nested_or_refused_by_name(tmp_path: Path) -> None:
    assert len(RECIPES) > len(REFUSED) + 5
    for name, reason in REFUSED.items():
        with pytest.raises(InputError, match=f"recipe '{name}' cannot be nested.*{reason}"):
            check_nestable(get_recipe(name))
    with pytest.raises(InputError, match="recipe 'best' cannot be nested with a compensation Z"):
        check_nestable(get_recipe("best").but(compensation="diagonal"))
    model, _ = compress(tiny(), [images(12)], "svd", 0.3)
    with pytest.raises(InputError, match="'comcat' cannot be nested"):
        save(model, tmp_path / "small", nested=analyse(tiny(), [images(12)], "comcat"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", few(["svd", "best"], 1))
def test_pivoted_factors_folded_norms_and_embeddings_are_opened_as_they_were_made(recipe: str, tmp_path: Path) -> None:
    model, data = tiny(), [images(12)]
    analysis = analyse(model, data, get_recipe(recipe).but(pivoted=True), device="cpu")
    made, report = analysis.compress(0.4)
    save(made, tmp_path / "small", report, model_args=ARGUMENTS["vit"], nested=analysis)
    opened = load(tmp_path / "small", reduction=0.4)
    assert parameter_count(opened) == parameter_count(made) < parameter_count(model)
    assert any(isinstance(module, PivotedLinear) for module in opened.modules())
    with torch.no_grad():
        torch.testing.assert_close(opened(images(3)), made(images(3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "recipe", few(nestable(), 3), ids=lambda recipe: f"{recipe.name}-{recipe.compensation}-{recipe.solver}"
)
def test_opened_at_a_reduction_it_is_what_compress_makes(recipe: Recipe, tmp_path: Path) -> None:
    analysis = nested(tmp_path / "small", recipe)
    opened, (made, report) = load(tmp_path / "small", reduction=0.6), analysis.compress(0.6)
    assert_same(opened, made)
    assert not opened.training
    for part in ("layers", "params", "macs", "recipe_fields", "compensation", "trajectory", "protocol"):
        assert opened.compression_report[part] == report[part], part
    with torch.no_grad():
        assert torch.equal(opened(images(3)), made(images(3)))
