"""Nested folders, opened at any reduction; what a refit changed is carried to other sizes; or the recipe is refused."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, analyse, compress, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import check_nestable, unpack
from lowrank_vit.compression.nested.file import packed, unpacked
from lowrank_vit.compression.nested.opened import Opened, narrowed, widened
from lowrank_vit.compression.recipe import SINGLE, Recipe
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.pivoted_linear import PivotedLinear
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.storage.folder import nested_entry
from tests.support import models
from tests.support.cases import few, in_turn
from tests.support.kinds import KINDS
from tests.support.models import ARGUMENTS, images, outputs, same, tiny

PARTS = ["attn", "mlp"]
DENSE = None


@cache
def analysis() -> Analysis:
    return analyse(tiny().double(), [images(24).double()], "best")


def known_of(part: str):
    return next(known for known in analysis().decomposed if known.name == f"blocks.1.{part}")


def ranks_of(part: str, count: int | None) -> dict[str, int | None]:
    """A size of a module: of an attention module, the same number of directions of both units."""
    return dict.fromkeys(known_of(part).parts, count)


def change_of(part: str, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(rows, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)


def subset_of(part: str):
    return list(known_of(part).parts.values())[-1]


@pytest.mark.parametrize(("part", "count"), [("attn", 5), ("mlp", DENSE)])
def test_at_the_size_that_it_was_fitted_at_a_change_is_what_it_was(part: str, count: int | None) -> None:
    change = change_of(part, len(subset_of(part).weight) if count is None else count)
    known, ranks = known_of(part), ranks_of(part, count)
    for one, other in zip(narrowed(known, ranks, widened(known, ranks, change)), change, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("part", "sizes"), in_turn(PARTS, [(9, 4), (4, 9), (DENSE, 7), (7, DENSE)]))
def test_what_a_change_adds_in_the_mean_is_the_same_at_all_sizes(
    part: str, sizes: tuple[int | None, int | None]
) -> None:
    known, subset, added = known_of(part), subset_of(part), []
    change = change_of(part, len(subset.weight) if sizes[0] is None else sizes[0])
    moved = narrowed(known, ranks_of(part, sizes[1]), widened(known, ranks_of(part, sizes[0]), change))
    for count, (weight, bias) in zip(sizes, (change, moved), strict=True):
        mean = subset.mean  # of what the dense output layer sees
        if count is not None:
            kept = known.cut(ranks_of(part, count)).kept
            mean = (mean - kept.offset) @ kept.columns
        added.append(mean @ weight + bias)
    assert torch.allclose(*added, rtol=1e-8, atol=1e-9)


def test_a_symmetric_matrix_is_whole_again() -> None:
    for side in (1, 2, 3, 50):
        matrix = torch.randn(side, side, dtype=torch.float64)
        matrix = matrix + matrix.T
        small = packed("covariance", matrix)
        assert (small.dtype, small.shape) == (torch.float32, (side * (side + 1) // 2,))
        assert torch.equal(unpacked("covariance", small), matrix.float().double())


REFUSED = {
    "paper": "solver 'minibatch'",
    "paper_charitable": "solver 'minibatch'",
    "paper_literal": "solver 'minibatch'",
    **dict.fromkeys(("aafm", "flar", "fwsvd_search", "asvd_search"), "measured on the images"),
    **dict.fromkeys(("comcat0", "comcat"), "units are fitted anew for every choice"),
    **dict.fromkeys(("ssp", "vtp-taylor", "vbp", "corp"), "units are fitted anew for every choice"),
}


def nestable() -> list[Recipe]:
    """Every recipe for single layers that is not refused as it is, and what the refused ones become by another solver."""
    single = [recipe for recipe in RECIPES.values() if recipe.name not in REFUSED and set(recipe.units) == {SINGLE}]
    plain = [recipe for recipe in single if recipe.refit is None]
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
    """With an error on unseen images."""
    analysis = analyse(tiny(), [images(12)], recipe, held_out=[images(6, seed=7)])
    save(analysis.compress(0.3)[0], tmp_path / "small", model_args=ARGUMENTS["vit"], nested=analysis)
    opened, (made, report) = load(tmp_path / "small", reduction=0.6), analysis.compress(0.6)
    assert same(opened, made)
    assert not opened.training
    for part in ("layers", "params", "macs", "recipe_fields", "compensation", "trajectory", "protocol"):
        assert opened.compression_report[part] == report[part], part
    with torch.no_grad():
        assert torch.equal(opened(images(3)), made(images(3)))


WRITTEN = 0.35
TINY = ("vit", "swin")
OTHERS = ("q and k norm", "swiglu", "layer scale", "post norm")


def made(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model and the arguments that it is saved with."""
    if kind in TINY:
        return models.tiny(kind), ARGUMENTS[kind]
    return KINDS[kind].make().float(), KINDS[kind].arguments


def pictures(kind: str, count: int, seed: int = 1) -> Tensor:
    if kind in TINY:
        return models.images(count, kind, seed)
    return KINDS[kind].images(count).float()


@cache
def written(kind: str) -> tuple[Analysis, Path]:
    """An analysis, and the folder that was written from it."""
    model, arguments = made(kind)
    held_out = [pictures(kind, 6, 7)]
    analysis = analyse(model, [pictures(kind, 16)], "best", held_out=held_out)
    folder = Path(mkdtemp()) / "small"
    save(analysis.compress(WRITTEN)[0], folder, model_args=arguments, nested=analysis)
    return analysis, folder


@cache
def opened() -> Opened:
    analysis = unpack(written("vit")[1], torch.device("cpu"))
    assert isinstance(analysis, Opened)
    return analysis


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TINY, *OTHERS])
def test_at_a_size_that_was_known_it_is_what_compress_makes(kind: str) -> None:
    analysis, folder = written(kind)
    largest = nested_entry(folder)["largest_reduction"]
    for size in [share for share in (WRITTEN, 0.2, 0.6) if share <= largest]:
        small, (expected, report) = load(folder, reduction=size), analysis.compress(size)
        assert torch.allclose(outputs(small, pictures(kind, 4, 3)), outputs(expected, pictures(kind, 4, 3)), atol=1e-4)
        told = small.compression_report
        for part in ("params", "macs", "recipe_fields", "budget", "left_dense", "protocol"):
            assert told[part] == report[part], part
        assert [layer["rank"] for layer in told["layers"]] == [layer["rank"] for layer in report["layers"]]
        for own, other in zip(told["layers"], report["layers"], strict=True):
            for name in ("relative_error", "relative_error_held_out"):
                assert own[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_any_budget_opens_it_and_no_image_is_seen() -> None:
    _, folder = written("vit")
    for budget, cost in [("macs=0.6", "macs"), ({"bytes": 0.6}, "bytes"), ({"params": "5k"}, "parameters")]:
        entry = load(folder, budget=budget).compression_report["budget"]
        assert entry["cost"] == cost
        assert entry["counted"] <= entry["limit"]
    assert opened().images.batches == ()
