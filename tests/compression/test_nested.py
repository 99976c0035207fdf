"""Nested folders: opened at any reduction they are, bit by bit, what compressing to it gives; or the recipe is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, analyse, compress, load, save
from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.nested import check_nestable
from lowrank_vit.compression.recipe import SINGLE, Recipe
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.quantize.weights import quantize
from lowrank_vit.storage.contents import CONFIG, NESTED
from lowrank_vit.storage.folder import load_model_args, load_report, nested_entry, verify
from tests.support.models import ARGUMENTS, images, tiny

REFUSED = {
    "paper": "solver 'minibatch'",
    "paper_charitable": "solver 'minibatch'",
    **dict.fromkeys(("aafm", "flar", "fwsvd_search"), "measured on the images"),
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
    with pytest.raises(InputError, match="pivoted factors cannot be nested"):
        check_nestable(get_recipe("best").but(pivoted=True))
    model, _ = compress(tiny(), [images(12)], "svd", 0.3)
    with pytest.raises(InputError, match="pivoted factors cannot be nested"):
        save(model, tmp_path / "small", nested=analyse(tiny(), [images(12)], get_recipe("svd").but(pivoted=True)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "recipe", nestable(), ids=lambda recipe: f"{recipe.name}-{recipe.compensation}-{recipe.solver}"
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


def test_it_is_what_compress_makes_from_the_same_images(tmp_path: Path) -> None:
    nested(tmp_path / "small", "exact")
    assert_same(load(tmp_path / "small", reduction=0.5), compress(tiny(), [images(12)], "exact", 0.5)[0])
    assert_same(load(tmp_path / "small", reduction=0.3), load(tmp_path / "small"))
    larger = load(tmp_path / "small", reduction=0.1)  # than the one it was saved at
    assert larger.compression_report["params"]["reduction"] < 0.12


def test_windows_and_layers_that_stay_dense(tmp_path: Path) -> None:
    analysis = nested(tmp_path / "small", "exact", "swin")
    opened, (made, report) = load(tmp_path / "small", reduction=0.05), analysis.compress(0.05)
    assert any(layer["rank"] is None for layer in report["layers"])
    assert_same(opened, made)


def test_what_is_taken_out_is_a_folder_of_its_own(tmp_path: Path) -> None:
    nested(tmp_path / "small", "loss_aware")
    opened = load(tmp_path / "small", reduction=0.5, dtype=torch.float64)
    assert next(opened.parameters()).dtype == torch.float64
    opened = load(tmp_path / "small", reduction=0.5)
    save(opened, tmp_path / "smaller", model_args=load_model_args(tmp_path / "small"))
    assert_same(load(tmp_path / "smaller"), opened)
    assert load_report(tmp_path / "smaller") == opened.compression_report
    assert nested_entry(tmp_path / "smaller") is None
    came_from = hashlib.sha256((tmp_path / "small" / NESTED).read_bytes()).hexdigest()
    assert opened.compression_report["provenance"]["nested_sha256"] == came_from
    with pytest.raises(InputError, match="holds one size only: compress with --nested"):
        load(tmp_path / "smaller", reduction=0.6)


def test_a_reduction_out_of_reach_names_the_range(tmp_path: Path) -> None:
    nested(tmp_path / "small", "svd")
    most = nested_entry(tmp_path / "small")["largest_reduction"]
    load(tmp_path / "small", reduction=most)
    for reduction in (0.0, -1.0, most + 0.01, float("nan")):
        with pytest.raises(InputError, match=r"out of reach: .* from 0 \(not included\) to 0\.\d+"):
            load(tmp_path / "small", reduction=reduction)


def test_a_broken_nested_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small"
    nested(folder, "svd")
    data = (folder / NESTED).read_bytes()
    for junk in (data[:-8], data[:100], b""):
        (folder / NESTED).write_bytes(junk)
        for check in (lambda: load(folder, reduction=0.5), lambda: verify(folder)):
            with pytest.raises(InputError, match=r"nested\.safetensors does not have the checksum"):
                check()
        load(folder)  # the model itself is whole
        monkeypatch.setattr(
            "lowrank_vit.compression.nested.check_file", lambda config, path: None
        )  # and without the checksum
        with pytest.raises(InputError, match=r"nested\.safetensors cannot be read"):
            load(folder, reduction=0.5)
        monkeypatch.undo()
    (folder / NESTED).unlink()
    with pytest.raises(InputError, match=r"nested\.safetensors cannot be read"):
        load(folder, reduction=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, r"format 3, this version reads \(1, 2\)"),
        ({"allocator": {"name": "uniform", "x": 1}}, "allocator"),
    ],
)
def test_a_nested_file_of_another_version_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    nested(folder, "svd")
    config = json.loads((folder / CONFIG).read_text())
    del config["lowrank_vit"]["sha256"]
    config["lowrank_vit"]["nested"] |= change
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        load(folder, reduction=0.5)


def test_only_the_model_that_the_analysis_made_is_nested(tmp_path: Path) -> None:
    analysis = analysed("exact")
    model, report = analysis.compress(0.3)
    other, _ = compress(tiny(), [images(12)], "svd", 0.3)
    for wrong in (quantize(model, 8)[0], other):
        with pytest.raises(InputError, match="neither trained nor quantised"):
            save(wrong, tmp_path / "small", nested=analysis)
    with pytest.raises(InputError, match="neither trained nor quantised"):
        save(model, tmp_path / "small", {**report, "protocol": "partial-ft"}, nested=analysis)
    assert not list(tmp_path.iterdir())
