"""Checkpoints in the forms that people have them: folders, shards, results of trainings; and files that are none."""

import json
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank_vit.models import load_model
from lowrank_vit.runtime.errors import InputError

NAME = "vit_tiny_patch16_224"
ARGUMENTS = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}  # fewer blocks than the architecture's own
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, img_size=32, num_classes=10, **ARGUMENTS).eval()


def below(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def shards(folder: Path, state: State) -> Path:
    folder.mkdir()
    names, files = list(state), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for file, part in zip(files, (names[:9], names[9:]), strict=True):
        save_file({name: state[name] for name in part}, folder / file)
    places = {name: files[place >= 9] for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def saved(folder: Path, content: Any, name: str = "it.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def whole(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


FORMS: dict[str, Callable[[Path, State], Path]] = {
    "folder": whole,
    "folder of shards": lambda folder, state: shards(folder / "it", state),
    "index of shards": lambda folder, state: shards(folder / "it", state) / "model.safetensors.index.json",
    "folder of transformers' older form": lambda folder, state: saved(folder, state, "pytorch_model.bin").parent,
    "no suffix": lambda folder, state: saved(folder, state, "it"),
    "Lightning with a loss's weights": lambda folder, state: saved(
        folder, {"state_dict": below("model.", state) | {"loss.weight": torch.ones(3)}}
    ),
    "a head beside the backbone": lambda folder, state: saved(
        folder,
        {f"net.{'' if name.startswith('head') else 'backbone.'}{name}": each for name, each in state.items()}
        | {"net.neck.weight": torch.ones(3)},
    ),
    "averaged model": lambda folder, state: saved(folder, below("module.", state) | {"n_averaged": torch.tensor(3)}),
    "results of a training": lambda folder, state: saved(
        folder, {"model": state, "best": np.float64(0.5), "epoch": np.int64(3), "out": PosixPath("runs")}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_read(form: str, tmp_path: Path, model: nn.Module) -> None:
    path = FORMS[form](tmp_path, model.state_dict())
    read = load_model(NAME, path, arguments=ARGUMENTS)
    with torch.no_grad():
        assert torch.equal(read(X), model(X))


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def outside(folder: Path, state: State) -> Path:
    index = shards(folder / "it", state) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"norm.weight": "../secret.safetensors"}}))
    return index


def traced(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), folder / "it.pt")
    return folder / "it.pt"


ODD: dict[str, tuple[Callable[[Path, State], Path], str]] = {
    "empty folder": (lambda folder, state: folder, "is a folder without model.safetensors"),
    "pointer of Git LFS": (
        lambda folder, state: written(folder, "it.safetensors", b"version https://git-lfs.github.com/spec/v1\noid"),
        "a pointer of Git LFS",
    ),
    "a page of an error": (
        lambda folder, state: written(folder, "it.pth", b"<html>404"),
        "truncated or not a file of torch.save or safetensors",
    ),
    "shards elsewhere": (outside, "names files in other folders"),
    "no index": (lambda folder, state: written(folder, "it.index.json", b"[]"), "is no index of weights"),
    "TorchScript": (lambda folder, state: traced(folder), "is a TorchScript archive"),
    "sparse": (
        lambda folder, state: saved(folder, state | {"norm.weight": torch.ones(48).to_sparse()}),
        "norm.weight holds float32, sparse_coo",
    ),
    "without values": (
        lambda folder, state: saved(folder, {name: each.to("meta") for name, each in state.items()}),
        r"without values \(meta\)",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", ODD)
def test_it_is_refused_in_one_line(form: str, tmp_path: Path, model: nn.Module) -> None:
    make, message = ODD[form]
    with pytest.raises(InputError, match=message) as error:
        load_model(NAME, make(tmp_path, model.state_dict()), arguments=ARGUMENTS)
    assert "\n" not in str(error.value)
