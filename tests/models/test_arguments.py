"""A fine-tuned model's classes and image size: as given, or as its checkpoint's shapes say."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config

from lowrank_vit.models import load_model, model_arguments
from lowrank_vit.runtime.errors import InputError
from tests.support.weights import same

PLAIN = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def checkpoint(folder: Path, name: str, **arguments: object) -> Path:
    """A fine-tuned model's file, of random weights."""
    torch.manual_seed(1)
    path = folder / "tuned.safetensors"
    safetensors.torch.save_file(timm.create_model(name, **PLAIN, **arguments).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("deit_tiny_patch16_224", {"num_classes": 37, "img_size": 192}, 192),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 5, "img_size": 96}, 96),
        ("vit_tiny_patch16_224", {"num_classes": 1000, "img_size": 224}, 224),
        ("vit_tiny_patch16_224", {"num_classes": 3, "img_size": 64, "class_token": False, "global_pool": "avg"}, 64),
    ],
)
def test_a_checkpoint_says_its_classes_and_its_size(
    name: str, arguments: dict[str, object], size: int, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, name, **arguments)
    told = {key: value for key, value in arguments.items() if key not in ("num_classes", "img_size")}
    model = load_model(name, path, arguments={**PLAIN, **told})
    assert model.num_classes == arguments["num_classes"]
    assert resolve_model_data_config(model)["input_size"] == (3, size, size)
    assert model(torch.randn(1, 3, size, size)).shape == (1, arguments["num_classes"])
    known = model_arguments(name, path, {**PLAIN, **told})
    assert known == {**PLAIN, **told, **({} if size == 224 else {"img_size": size})}


def test_what_is_given_wins_and_must_fit(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "deit_tiny_patch16_224", num_classes=37)
    with pytest.raises(InputError, match=r"head.weight is \(37, 16\) instead of \(9, 16\)"):
        load_model("deit_tiny_patch16_224", path, arguments={**PLAIN, "num_classes": 9})
    with pytest.raises(InputError, match=r"timm cannot make 'deit_tiny_patch16_224' with .*'depht': 1"):
        load_model("deit_tiny_patch16_224", path, arguments={"depht": 1})
    with pytest.raises(InputError, match="'pretrained' is not an argument of the architecture"):
        load_model("deit_tiny_patch16_224", path, arguments={"pretrained": True})
    with pytest.raises(InputError, match=r"have 1000 classes, not 37: pass the fine-tuned ones, --checkpoint"):
        load_model("deit_tiny_patch16_224", arguments={"num_classes": 37})
    with pytest.raises(InputError, match="does not take"):
        load_model("digits_deit_small", arguments={"num_classes": 37})


def test_a_timm_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own config.json: classes, arguments, and how images are prepared."""
    name, arguments = "deit_tiny_patch16_224", {**PLAIN, "img_size": 64}
    path = checkpoint(tmp_path, name, num_classes=37, img_size=64)
    config = {
        "architecture": name,
        "num_classes": 37,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = {"config.json": str(tmp_path / "config.json"), "model.safetensors": str(path)}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file, revision: files.get(file))
    model = load_model("hf_hub:timm/pets")
    assert model.num_classes == 37
    assert tuple(resolve_model_data_config(model)["mean"]) == (0.1, 0.2, 0.3)
    assert same(model, load_model(name, path, arguments=PLAIN))
    assert model_arguments("hf_hub:timm/pets", None, {}) == arguments
    (tmp_path / "config.json").write_text(json.dumps({**config, "lowrank_vit": {}}))
    with pytest.raises(InputError, match="in the place of DIR"):
        load_model("hf_hub:timm/pets")
