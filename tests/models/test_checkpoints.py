"""Checkpoints as people have them: PyTorch's files, folders, shards, prefixes and moving averages; nothing is unpickled."""

import argparse
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

from lowrank_vit.models import load_model, model_arguments
from lowrank_vit.runtime.errors import InputError
from tests.support.models import outputs

SMALL = "digits_deit_small"
State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return timm.create_model(SMALL, num_classes=7).state_dict()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def scaled(state: State) -> State:
    return {key: 2 * value for key, value in state.items()}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "model and args": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-3, data="here")},
    "module": lambda state: {"model_state_dict": under("module", state) | {"n_averaged": torch.tensor(3)}},
    "two prefixes in a row": lambda state: under("module._orig_mod", state),
    "teacher": lambda state: {"teacher": under("backbone", state), "dino_loss": {"center": torch.zeros(1, 7)}},
    "entry in an entry": lambda state: {"checkpoint": {"model": state}},
    "encoder": lambda state: under("encoder", state),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stateare_unwrapped(tmp_path: Path, state: State, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](state), file)
    model = load_model(SMALL, file)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert len(caplog.messages) == (0 if layout == "plain" else 1)


@pytest.mark.parametrize(
    ("average", "named"),
    [
        (lambda state: {"model": state, "model_ema": scaled(state)}, ("model", "model_ema")),
        (lambda state: {"state_dict": under("net", state) | under("ema", scaled(state))}, ("state_dict.net", "ema")),
        (lambda state: under("student.b", state) | under("teacher.b", scaled(state)), ("student", "teacher.b")),
    ],
)
def test_of_several_one_is_chosen(tmp_path: Path, state: State, average: Any, named: tuple[str, str]) -> None:
    file = tmp_path / "weights.pth"
    torch.save(average(state), file)
    with pytest.raises(InputError, match=r"several sets of weights \(.*#") as error:
        load_model(SMALL, file)
    assert "\n" not in str(error.value)
    for name, factor in zip(named, (1, 2), strict=True):
        place = Path(f"{file}#{name}")
        if name != "student":  # which holds a further prefix
            assert load_model(SMALL, place).head.bias.equal(factor * state["head.bias"])
            assert model_arguments(SMALL, place, {}) == {}
    with pytest.raises(InputError, match="has no 'other'"):
        load_model(SMALL, Path(f"{file}#other"))


NAME = "vit_tiny_patch16_224"
ARGUMENTS = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}  # fewer blocks than the architecture's own
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, img_size=32, num_classes=10, **ARGUMENTS).eval()


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
        folder, {"state_dict": under("model", state) | {"loss.weight": torch.ones(3)}}
    ),
    "a head beside the backbone": lambda folder, state: saved(
        folder,
        {f"net.{'' if name.startswith('head') else 'backbone.'}{name}": each for name, each in state.items()}
        | {"net.neck.weight": torch.ones(3)},
    ),
    "results of a training": lambda folder, state: saved(
        folder, {"model": state, "best": np.float64(0.5), "epoch": np.int64(3), "out": PosixPath("runs")}
    ),
}


def test_it_is_read(tmp_path: Path, model: nn.Module) -> None:
    for form, make in FORMS.items():
        (tmp_path / form).mkdir()
        read = load_model(NAME, make(tmp_path / form, model.state_dict()), arguments=ARGUMENTS)
        assert torch.equal(outputs(read, X), outputs(model, X)), form


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
def test_it_is_refused_in_one_line(tmp_path: Path, model: nn.Module) -> None:
    for form, (make, message) in ODD.items():
        (tmp_path / form).mkdir()
        with pytest.raises(InputError, match=message) as error:
            load_model(NAME, make(tmp_path / form, model.state_dict()), arguments=ARGUMENTS)
        assert "\n" not in str(error.value)
