"""The model card: metadata as the hub's own reader has it, and nothing that config and report do not say."""

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lowrank_vit import compress, save
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.storage.card import model_card
from lowrank_vit.storage.folder import load_report, read_config
from lowrank_vit.storage.shipped import shipped, shipped_folder
from tests.support.cases import few
from tests.support.markup import poisoned
from tests.support.models import ARGUMENTS, images, tiny


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


@pytest.mark.parametrize("recipe", few(sorted(RECIPES), 4))
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
            }  # two heads and 16 outputs, of which one of either stays
            assert row[1] == ", ".join(said.format(kept[unit]) for unit, said in words.items() if unit in kept)
        else:
            words = {
                "hidden": "hidden {} of 64",
                "input": "inputs {} of 16",
                "part": "parts {} of 79",
                "depth": "blocks {} of 2",
            }
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
    assert (
        "<script>" not in hostile_card(tmp_path).split("\n---\n", 1)[1]
    )  # behind the metadata, whose texts are indented
