"""Folders and files that somebody edited: they work, or are refused in one line; no pickle is opened, no file fetched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_vit import compress, load
from lowrank_vit import save as save_folder
from lowrank_vit.modules import empty_replacement
from lowrank_vit.storage.skeleton import check_architecture, check_layer
from tests.support.hostile import QUICK, changed, outcome, refused
from tests.support.models import ARGUMENTS, images, tiny


@pytest.fixture(scope="module", params=["exact", "best"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compressed, _ = compress(tiny(), [images(12)], request.param, 0.3)
    target = tmp_path_factory.mktemp("hostile") / "small"
    save_folder(compressed, target, model_args=ARGUMENTS["vit"])
    return target


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder without checksums, as old ones are: what edits it could seal it anew."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    del config["lowrank_vit"]["sha256"]
    edit(copy, "config.json", config)
    return copy


def edit(folder: Path, name: str, tree: Any) -> None:
    (folder / name).write_text(json.dumps(tree))


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_a_config_edited_at_random(folder: Path, data: st.DataObject) -> None:
    config, work = json.loads((folder / "config.json").read_text()), folder.with_name("config")
    shutil.copytree(folder, work, dirs_exist_ok=True)
    edit(work, "config.json", changed(config, data.draw))
    code, line = outcome("inspect", work)
    if code:
        assert "config" in line
    else:
        with torch.no_grad():
            assert load(work)(images(2)).isfinite().all()


@pytest.mark.slow
@QUICK
@given(data=st.data())
def test_weights_edited_at_random(folder: Path, data: st.DataObject) -> None:
    content, work = bytearray((folder / "model.safetensors").read_bytes()), folder.with_name("weights")
    shutil.copytree(folder, work, dirs_exist_ok=True)
    place = data.draw(st.integers(0, min(len(content) - 1, 4000)))
    content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(content), place, len(content) - 1]))
    (work / "model.safetensors").write_bytes(content[:end])
    code, line = outcome("inspect", work)
    assert not code or "model.safetensors" in line


def test_nothing_is_fetched_or_opened_for_a_config(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    torch.save(tiny().state_dict(), tmp_path / "x.pth")
    for change in (
        {"architecture": "hf-hub:somebody/model"},
        {"architecture": f"local-dir:{tmp_path}"},
        {"architecture": "vit_tiny_patch16_223"},
        {"model_args": {**config["model_args"], "checkpoint_path": str(tmp_path / "x.pth")}},
        {"model_args": {**config["model_args"], "pretrained": True}},
        {"model_args": "x"},
    ):
        edit(copied, "config.json", {**config, **change})
        assert "does not describe a model" in refused("inspect", copied)


def test_an_architecture_is_one_that_timm_has_at_no_address() -> None:
    """Refused before timm sees it, which would ask the hub or read a folder."""
    check_architecture({"architecture": "vit_tiny_patch16_224.augreg_in21k", "model_args": {"depth": 2}})
    names = ["hf-hub:somebody/model", "hf_hub:a/b", "local-dir:/tmp/x", "https://a.b/c", "no_such", "", None, 3]
    for name in names:
        with pytest.raises(ValueError, match="timm has no model"):
            check_architecture({"architecture": name, "model_args": {}})


def test_a_layer_larger_than_the_one_it_replaces_is_refused_before_it_is_made() -> None:
    """A linear layer of 16 x 64 allows no number above 64, and a correction none above its 1024 + 64 parameters."""
    dense, entry = torch.nn.Linear(16, 64), {"in_features": 16, "out_features": 64, "rank": 64}
    check_layer("x", {**entry, "correction": {"kind": "unstructured_sparse", "count": 1024 + 64}}, dense)
    ranks: list[dict[str, Any]] = [{"rank": rank} for rank in (65, 2**70, -1, float("nan"))]
    for change in (*ranks, {"in_features": 17}, {"out_features": [10**12]}):
        with pytest.raises(ValueError, match="'x'"):
            check_layer("x", {**entry, **change}, dense)
    with pytest.raises(ValueError, match="'x' has the correction"):
        check_layer("x", {**entry, "correction": {"kind": "unstructured_sparse", "count": 1024 + 65}}, dense)


def test_a_value_of_another_type_is_refused_when_the_layer_is_made() -> None:
    entry = {"kind": "attention", "width": 16, "query_key": [2, 2], "value": [2, 2], "scale": 0.5}
    empty_replacement(entry, torch.nn.Identity())
    for name, value in (("scale", "hf-hub:x/y"), ("scale", True), ("width", 2.5), ("class_token", 1)):
        with pytest.raises(ValueError, match=f"{name} is "):
            empty_replacement({**entry, name: value}, torch.nn.Identity())
