"""The small stand-ins: trained once for each recipe and seed, on disk from then on, and good."""

import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lowrank_vit.models import load_model
from lowrank_vit.models import standin_training as cache
from lowrank_vit.models.standin_training import Recipe, train_standin
from tests.support.models import same

pytestmark = pytest.mark.slow
SMALL = "digits_deit_small"


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "standins"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The trainings asked for; none is carried out."""
    asked: list[tuple[str, int]] = []

    def untrained(name: str, seed: int) -> nn.Module:
        asked.append((name, seed))
        time.sleep(0.2)
        torch.manual_seed(seed)
        return timm.create_model(name).eval()

    monkeypatch.setattr(cache, "train_standin", untrained)
    return asked


def test_training_is_deterministic_and_private() -> None:
    short = Recipe(epochs=2)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with torch.inference_mode():
        first = train_standin(SMALL, 0, short)
    assert torch.rand(2).equal(expected)
    assert same(first, train_standin(SMALL, 0, short))
    assert not same(first, train_standin(SMALL, 1, short))
    assert not first.training
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in first.parameters())


def test_a_standin_is_trained_once(cache_folder: Path, trainings: list) -> None:
    first, second = load_model(SMALL), load_model(SMALL)
    assert trainings == [(SMALL, 0)]
    assert same(first, second)
    assert not second.training
    assert [file.suffix for file in sorted(cache_folder.iterdir())] == [".safetensors", ".lock"]
