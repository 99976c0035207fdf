"""Models by name and from files: what fits is loaded, with the classes and the size of its shapes; all else is one line."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config

from lowrank_vit.models import load_model, model_arguments
from lowrank_vit.models.checkpoints import load_checkpoint
from lowrank_vit.runtime.errors import InputError
from tests.support.image_folders import data
from tests.support.models import same

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


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    for name in ("model.pickle", "model.pkl", "model.npz", "model.npy"):
        torch.save({}, tmp_path / name)
        assert "is a pickle" in refusal(SMALL, tmp_path / name)


@pytest.mark.slow
@pytest.mark.real_data
def test_deit_tiny_knows_the_real_images(real_data: Path) -> None:
    model = load_model("deit_tiny_patch16_224", real_data / "weights" / "deit_tiny_patch16_224.safetensors")
    config = timm.data.resolve_model_data_config(model)
    loader = data(f"imagefolder:{real_data}/imagenet-samples", config, limit=24).val_dataloader()
    with torch.inference_mode():
        hits = sum((model(batch).argmax(1) == label).sum().item() for batch, label in loader)
    assert hits >= 16  # 83.7% of the thousand


PLAIN = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def tuned(folder: Path, name: str, **arguments: object) -> Path:
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
    path = tuned(tmp_path, name, **arguments)
    told = {key: value for key, value in arguments.items() if key not in ("num_classes", "img_size")}
    model = load_model(name, path, arguments={**PLAIN, **told})
    assert model.num_classes == arguments["num_classes"]
    assert resolve_model_data_config(model)["input_size"] == (3, size, size)
    assert model(torch.randn(1, 3, size, size)).shape == (1, arguments["num_classes"])
    known = model_arguments(name, path, {**PLAIN, **told})
    assert known == {**PLAIN, **told, **({} if size == 224 else {"img_size": size})}
