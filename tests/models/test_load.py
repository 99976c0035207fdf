"""Models by name and from files: what fits is loaded, everything else is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from lowrank_vit.models import load_model
from lowrank_vit.models.checkpoints import load_checkpoint
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import data
from tests.support.weights import same

SMALL = "digits_deit_small"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    safetensors.torch.save_file(timm.create_model(SMALL).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def refusal(name: str, path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(name, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_is_loaded(checkpoint: Path) -> None:
    model = load_model(SMALL, checkpoint)
    tensors = safetensors.torch.load_file(checkpoint)
    assert all(tensor.equal(tensors[key]) for key, tensor in model.state_dict().items())
    assert not model.training


def test_half_precision_becomes_float32(checkpoint: Path) -> None:
    half = {key: tensor.half() for key, tensor in safetensors.torch.load_file(checkpoint).items()}
    safetensors.torch.save_file(half, checkpoint)
    assert {parameter.dtype for parameter in load_model(SMALL, checkpoint).parameters()} == {torch.float32}


def test_tensors_that_do_not_fit_are_named(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint)
    del tensors["head.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["cls_token"] = torch.zeros(1, 1, 7)
    tensors["norm.bias"][0] = torch.nan
    tensors["norm.weight"] = tensors["norm.weight"].to(torch.int8)
    safetensors.torch.save_file(tensors, checkpoint)
    message = refusal(SMALL, checkpoint)
    assert "1 missing (head.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "cls_token is (1, 1, 7) instead of (1, 1, 24)" in message
    assert "norm.weight holds int8" in message
    assert "1 not finite (norm.bias)" in message


def test_another_models_checkpoint_names_only_a_few(checkpoint: Path) -> None:
    message = refusal("digits_deit_base", checkpoint)
    assert "does not fit digits_deit_base" in message
    assert len(message) < 600


def test_timms_older_names_are_understood(tmp_path: Path) -> None:
    model = timm.create_model("digits_swin_small")
    original = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): tensor
        for key, tensor in model.state_dict().items()
    }
    safetensors.torch.save_file(original, tmp_path / "old.safetensors")
    assert same(load_model("digits_swin_small", tmp_path / "old.safetensors"), model)


def test_swin_in_microsofts_layout_with_four_stages(tmp_path: Path) -> None:
    """Its stages merge patches at their ends, so ``layers.1.downsample`` is there in both layouts, in other shapes."""
    arguments = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2), "window_size": 2}
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=5, **arguments)
    original = {}
    for key, tensor in model.state_dict().items():
        stage = re.match(r"layers\.(\d)\.downsample", key)
        old = key if stage is None else key.replace(stage[0], f"layers.{int(stage[1]) - 1}.downsample")
        original[old.replace("head.fc.", "head.")] = tensor
    for block in ("layers.0.blocks.0", "layers.2.blocks.1"):  # buffers that the original files hold
        original[f"{block}.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    assert original["layers.1.downsample.norm.weight"].shape != model.layers[1].downsample.norm.weight.shape
    safetensors.torch.save_file(original, tmp_path / "old.safetensors")
    fresh = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=5, **arguments)
    load_checkpoint(fresh, tmp_path / "old.safetensors", "swin")
    assert same(fresh, model)


def test_weights_of_another_window_are_not_resampled(tmp_path: Path) -> None:
    arguments = {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "num_classes": 5}
    small, large = (
        timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, window_size=size, **arguments)
        for size in (2, 4)
    )
    old = {
        key.replace("layers.1.downsample", "layers.0.downsample"): value for key, value in small.state_dict().items()
    }
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    with pytest.raises(InputError, match="relative_position_bias_table is"):
        load_checkpoint(large, tmp_path / "old.safetensors", "swin")


@pytest.mark.parametrize("name", ["model.pickle", "model.pkl", "model.npz", "model.npy"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    torch.save({}, tmp_path / name)
    assert "is a pickle" in refusal(SMALL, tmp_path / name)


@pytest.mark.parametrize("damage", ["truncated", "junk", "empty", "pickle"])
def test_a_file_that_is_none(checkpoint: Path, damage: str) -> None:
    if damage == "pickle":
        torch.save({}, checkpoint)
    else:
        checkpoint.write_bytes({"truncated": checkpoint.read_bytes()[:5000], "junk": b"x" * 99, "empty": b""}[damage])
    assert "truncated or not a safetensors file" in refusal(SMALL, checkpoint)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(SMALL, tmp_path / "none.safetensors")
    assert "is a folder" in refusal(SMALL, tmp_path)


@pytest.mark.real_data
def test_the_real_checkpoint(real_data: Path) -> None:
    model = load_model("deit_tiny_patch16_224", real_data / "weights" / "deit_tiny_patch16_224.safetensors")
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_717_416


def test_an_unknown_model_gets_a_few_suggestions() -> None:
    with pytest.raises(InputError, match="did you mean 'deit_tiny_patch16_224'") as error:
        load_model("deit_tiny_patch16_244")
    assert str(error.value).count("patch") <= 8
    with pytest.raises(InputError, match=SMALL):
        load_model("nothing like it")
    with pytest.raises(InputError, match=r"deit_tiny_patch16_224\.fb_in1k"):
        load_model("deit_tiny_patch16_224.fb_in2k")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lowrank_vit.models.load.hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"pass --checkpoint FILE\.safetensors") as error:
        load_model("deit_tiny_patch16_224")
    assert "\n" not in str(error.value)


def test_hub_weights_are_loaded_like_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = timm.create_model("deit_tiny_patch16_224")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    cached = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: cached)
    assert same(load_model("deit_tiny_patch16_224"), model)


@pytest.mark.real_data
def test_deit_tiny_knows_the_real_images(real_data: Path) -> None:
    from lowrank_vit.models import load_model

    model = load_model("deit_tiny_patch16_224", real_data / "weights" / "deit_tiny_patch16_224.safetensors")
    config = timm.data.resolve_model_data_config(model)
    loader = data(f"imagefolder:{real_data}/imagenet-samples", config, limit=24).val_dataloader()
    with torch.inference_mode():
        hits = sum((model(batch).argmax(1) == label).sum().item() for batch, label in loader)
    assert hits >= 16  # 83.7% of the thousand
