"""Checkpoints as people have them: PyTorch's files, wrapped, with prefixes and moving averages; nothing is unpickled."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from lowrank_vit.models import load_model, model_arguments
from lowrank_vit.runtime.errors import InputError

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
    "module": lambda state: {"model_state_dict": under("module", state)},
    "two prefixes in a row": lambda state: under("module._orig_mod", state),
    "lightning": lambda state: {"state_dict": {**under("model", state), "loss.weight": torch.ones(7)}, "callbacks": {}},
    "teacher": lambda state: {"teacher": under("backbone", state), "dino_loss": {"center": torch.zeros(1, 7)}},
    "entry in an entry": lambda state: {"checkpoint": {"model": state}},
    "encoder": lambda state: under("encoder", state),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_unwrapped(tmp_path: Path, state: State, layout: str, caplog: pytest.LogCaptureFixture) -> None:
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
