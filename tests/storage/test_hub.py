"""Folders to the hub and back, their cards, and the model that comes with the package."""

import copy
import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

import lowrank_vit
from lowrank_vit import InputError, analyse, compress, load, push_to_hub, save
from lowrank_vit.cli import main
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.storage import hub
from lowrank_vit.storage.card import model_card
from lowrank_vit.storage.contents import CARD, CONFIG, NESTED, REPORT, WEIGHTS, check_contents, file_bytes, load_report
from lowrank_vit.storage.folder import read_config
from lowrank_vit.storage.shipped import shipped, shipped_folder
from tests.support.cases import few
from tests.support.commands import refused
from tests.support.hostile import poisoned
from tests.support.models import ARGUMENTS, images, tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def uploads(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was pushed; it lies in the cache then, as if it had been fetched."""
    calls: list[dict[str, Any]] = []

    def create(self: object, repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return f"https://hub/{repo_id}"

    def upload(self: object, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **options: Any) -> None:
        calls.append({"repo_id": repo_id, **options})
        repository = cache / f"models--{repo_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        for file in folder_path.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, repository / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "hub_reachable", lambda: not constants.HF_HUB_OFFLINE or len(calls) < 2)
    return calls


def nested(folder: Path) -> torch.nn.Module:
    analysis = analyse(tiny(), [images(12)], "exact")
    model, _ = analysis.compress(0.3)
    save(model, folder, model_args=ARGUMENTS["vit"], nested=analysis)
    return model


def test_a_folder_goes_to_the_hub_and_comes_back(
    tmp_path: Path, cache: Path, uploads: list, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nested(tmp_path / "small")
    (tmp_path / "small" / "secret.txt").write_text("not a file of the model")
    main(["push", str(tmp_path / "small"), "somebody/small", "--private"])
    assert "pushed to https://hub/somebody/small" in capsys.readouterr().out
    assert uploads[0] == {"repo_id": "somebody/small", "private": True, "exist_ok": True}
    (snapshot,) = (cache / "models--somebody--small" / "snapshots").iterdir()
    assert sorted(file.name for file in snapshot.iterdir()) == sorted([CARD, CONFIG, REPORT, WEIGHTS, NESTED])
    for prefix in hub.PREFIXES:
        for revision in ("", "@main", f"@{COMMIT}"):
            with torch.no_grad():
                assert torch.equal(load(f"{prefix}somebody/small{revision}")(images(3)), model(images(3)))
    smaller = load("hf_hub:somebody/small", reduction=0.6)
    assert smaller.compression_report["params"]["reduction"] > 0.6
    main(["shrink", "hf_hub:somebody/small", "--reduction", "0.6", "--out", str(tmp_path / "smaller")])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "smaller")(images(3)), smaller(images(3)))
    (snapshot / NESTED).unlink()  # as it is fetched for all but other sizes
    capsys.readouterr()
    for prefix in hub.PREFIXES:
        main(["inspect", f"{prefix}somebody/small"])
        assert "nested" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"nested\.safetensors is missing"):
        push_to_hub(snapshot, "somebody/again")


NAME = "deit_tiny_4mib"


def test_it_is_whole_and_small_and_free_to_be_given_away() -> None:
    folder = shipped_folder(NAME)
    assert shipped() == [NAME]
    assert folder is not None
    assert check_contents(folder)
    assert file_bytes(folder) <= 4 * 2**20
    assert load_report(folder)["budget"]["asked"] == "bytes=4MiB"
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    for file in folder.iterdir():
        assert not any(part in file.read_bytes() for part in (b"/work", b"/home", b"/root"))


def test_it_loads_and_names_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), (250, 250, 250)).save(tmp_path / "white.png")
    model = lowrank_vit.load(NAME)
    found = lowrank_vit.classify(model, tmp_path / "white.png", top=3)
    assert len(found) == 3
    assert all(0 < percent <= 100 and not name.startswith("class ") for name, percent in found)
    assert [percent for _, percent in found] == sorted((percent for _, percent in found), reverse=True)
    main(["classify", NAME, str(tmp_path / "white.png"), "--top", "3"])
    assert all(name in capsys.readouterr().out for name, _ in found[:1])
    (tmp_path / "text.jpg").write_text("no image")
    assert "cannot read the image" in refused(capsys, "classify", NAME, tmp_path / "text.jpg").partition("\n")[0]


@pytest.mark.slow
@pytest.mark.real_data
def test_it_sees_what_photographs_show(real_data: Path) -> None:
    classes = sorted((real_data / "imagenet-samples" / "validation").iterdir())
    photographs = [next(folder.iterdir()) for folder in classes]
    from timm.data import ImageNetInfo

    info, model, hits = ImageNetInfo(), lowrank_vit.load(NAME), 0
    for photograph in photographs[::20]:
        wanted = info.label_name_to_description(photograph.parent.name).partition(",")[0]
        hits += wanted in [name for name, _ in lowrank_vit.classify(model, photograph)]
    assert hits >= 0.8 * len(photographs[::20])


def saved(folder: Path, recipe: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Config, report and card of a compressed model."""
    chosen = get_recipe(recipe).but(solver="closed_form")
    model, _ = compress(tiny(), [images(12)], chosen, 0.4, held_out=[images(6, seed=7)])
    save(model, folder, model_args=ARGUMENTS["vit"])
    return read_config(folder), load_report(folder), (folder / "README.md").read_text()


def cells(card: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    rows = [line.strip("| ").split("|") for line in card.splitlines() if line.startswith("|")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


@pytest.mark.parametrize("recipe", few(sorted(RECIPES), 2))
def test_the_card_says_what_the_report_says(recipe: str, tmp_path: Path) -> None:
    config, report, text = saved(tmp_path / "small", recipe)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("lowrank_vit", "image-classification")
    assert {"timm", "low-rank"} <= set(data.tags)
    assert data.base_model == config["pretrained_cfg"]["hf_hub_id"] == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert data.license == config["pretrained_cfg"]["license"] == "apache-2.0"
    assert data.eval_results is None
    rows = cells(text)
    assert rows["parameters"][0] == f"{report['params']['dense']:,}"
    assert rows["parameters"][1].split()[0] == f"{report['params']['compressed']:,}"
    assert rows["MACs of one image"] == [f"{report['macs'][which]:,}" for which in ("dense", "compressed")]
    for layer in report["layers"]:
        row = rows[layer["name"]]
        assert row[0] == f"{layer['in_features']} x {layer['out_features']}"
        assert row[3] == f"{layer['params']:,}"
        assert row[4:] == [f"{100 * layer[key]:.2f}" for key in ("relative_error", "relative_error_held_out")]
        kept = layer.get("details", {})
        if layer["name"].endswith(("qkv", "proj", "fc1", "fc2", "linear", "pos_embed")):
            assert row[1] == ("dense" if layer["rank"] is None else f"rank {layer['rank']}")
        elif layer["name"].endswith("attn"):
            words = {"query_key": "query-key {} of 16", "value": "value {} of 16", "head": "heads {} of 2"}
            words |= {
                "input": "inputs {} of 16",
                "part": "parts {} of 17",
            }  # heads and outputs, of which one each stays
            assert row[1] == ", ".join(said.format(kept[unit]) for unit, said in words.items() if unit in kept)
        else:
            words = {"hidden": "hidden {} of 64", "input": "inputs {} of 16"}
            words |= {"part": "parts {} of 79", "depth": "blocks {} of 2"}
            assert row[1] == ", ".join(said.format(kept[unit]) for unit, said in words.items() if unit in kept)
    assert all((layer["z"] is not None) == ("low_rank" in rows[layer["name"]][2]) for layer in report["layers"])
    assert "images that were handed in without a name" in text
    assert f"Protocol: {report['protocol']}" in text
    assert report["protocol"] == ("gates-alone" if "learnt" in report else "training-free")
    assert ("no label was read" in text) == ("learnt" in report)
    assert "No accuracy: the report holds none" in text
    assert "nested" not in text


def test_the_card_says_what_was_done_of_what_the_budget_decides() -> None:
    folder = shipped_folder(shipped()[0])
    assert folder is not None
    config, tokens, report = read_config(folder), {"rule": "merge", "pairs": [0, 8]}, dict(load_report(folder))
    report.pop("quantization", None)
    for pivoted, entry, end in (
        (True, {}, "; factors pivoted"), (False, {}, ""), (False, {"tokens": tokens}, "; tokens merged"),
        (False, {"tokens": {**tokens, "pairs": [0, 0]}}, ""),
    ):  # fmt: skip
        fields = {**report["recipe_fields"], "about": get_recipe("best").about, "pivoted": pivoted}
        text = model_card(config, {**report, "recipe_fields": fields, **entry}, 1000)
        assert f"`, heads, and embeddings at a rank, norms folded{end}." in text


HOSTILE = "</script><script>alert(1)</script>\n---\nlicense: mit\ntags: [x]\n"


def hostile_card(tmp_path: Path) -> str:
    config, report, _ = saved(tmp_path / "small", "svd")
    return model_card(poisoned(config, HOSTILE), poisoned(copy.deepcopy(report), HOSTILE), 1000)


def test_texts_of_a_foreign_folder_change_no_other_metadata(tmp_path: Path) -> None:
    """What a re-saved folder says of itself at the hub: the licence is one text, tags and library are our own."""
    _, _, text = saved(tmp_path / "plain", "svd")
    data, plain = ModelCard(hostile_card(tmp_path)).data, ModelCard(text).data
    assert (data.tags, data.library_name, data.pipeline_tag) == (plain.tags, plain.library_name, plain.pipeline_tag)
    assert data.license == "apache-2.0" + HOSTILE


def test_no_element_of_a_card_comes_from_a_foreign_folder(tmp_path: Path) -> None:
    _, behind_the_metadata = hostile_card(tmp_path).split("\n---\n", 1)  # whose texts are indented
    assert "<script>" not in behind_the_metadata
