"""A delta on disk: how large it is, that it comes back whole, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lowrank_vit.customize.customization import load_delta, save_delta
from lowrank_vit.runtime.errors import InputError
from tests.support.diffusion import METHODS, attached, moved, outputs, small


def saved(path: Path, name: str = "comcat") -> torch.Tensor:
    """Save a changed delta, and return what the model computes with it."""
    model = small(torch.float32)
    customization = moved(attached(model, name))
    save_delta(customization, path)
    return outputs(model)


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_comes_back_on_another_copy_of_the_base(name: str, tmp_path: Path) -> None:
    expected = saved(tmp_path / "delta.safetensors", name)
    model = small(torch.float32)
    loaded = load_delta(model, tmp_path / "delta.safetensors")
    assert torch.equal(outputs(model), expected)
    assert loaded.new_word == "V*"
    assert loaded.trained == []


def damage(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str], how: str) -> None:
    """Spoil a delta's file."""
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "text":
        path.write_text("no delta")
    elif how == "plain":
        save_file(tensors, path)
    elif how == "tensor":
        tensors.popitem()
        save_file(tensors, path, about)
    elif how == "method":
        save_file(tensors, path, {**about, "method": "comcats"})
    else:
        save_file(tensors, path, {**about, "settings": '{"ranks": 2}'})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "cannot read .*delta.safetensors"),
        ("text", "cannot read .*delta.safetensors"),
        ("plain", "is not a delta of this format"),
        ("tensor", "its tensors are not those of comcat"),
        ("method", "did you mean 'comcat'"),
        ("settings", "is damaged"),
    ],
)
def test_a_damaged_file_is_refused_and_the_base_stays(how: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    saved(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    damage(path, load_file(path), about, how)
    model = small(torch.float32)
    before = outputs(model, ["normal 3"])
    with pytest.raises(InputError, match=said):
        load_delta(model, path)
    assert torch.equal(outputs(model, ["normal 3"]), before)
