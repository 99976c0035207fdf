"""The caller's world stays outside: what surrounds a model, how it is trained, and what torch is set to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_vit import analyse, compress
from tests.support.cases import few, in_turn
from tests.support.models import images, tiny
from tests.support.weights import same

RECIPES = ["best", "loss_aware"]
DATA = images(24).split(8)


def made(model: nn.Module, recipe: str = "best", **options: Any) -> dict[str, torch.Tensor]:
    return compress(model, DATA, recipe, 0.4, device="cpu", **options)[0].state_dict()


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, torch.Tensor]]:
    """What a model in evaluation mode gives, with nothing around it."""
    return {recipe: made(tiny(), recipe) for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_gradient_checkpointing_counts_no_image_twice(recipe: str, plain: Any) -> None:
    model: Any = tiny()
    model.set_grad_checkpointing(True)
    analysis = analyse(model, DATA, recipe, device="cpu")
    assert {moments.images for moments in analysis.moments.values()} == {24}
    assert same(made(model, recipe), plain[recipe])
    assert model.grad_checkpointing is True


class Averaged(torch.optim.swa_utils.AveragedModel):
    """The model of an exponential moving average."""


@pytest.mark.parametrize(
    "wrap", few([nn.DataParallel, Averaged, lambda model: nn.DataParallel(Averaged(model)), torch.compile], 3)
)
def test_what_surrounds_a_model_is_taken_off_and_said(wrap: Any, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert same(made(wrap(tiny())), plain["best"])
    assert "the VisionTransformer inside the" in caplog.text


@contextmanager
def autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("recipe", "around"), in_turn(RECIPES, [autocast, float64, torch.no_grad, torch.inference_mode])
)
def test_settings_of_torch_change_nothing(recipe: str, around: Any, plain: Any) -> None:
    model = tiny()
    with around():
        assert same(made(model, recipe), plain[recipe])
