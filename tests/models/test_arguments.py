"""A fine-tuned model's classes and image size: as given, or as its checkpoint's shapes say."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config

from lowrank_vit.models import load_model, model_arguments

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
