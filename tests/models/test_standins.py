"""The small stand-ins: trained once for each recipe and seed, on disk from then on, and good."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lowrank_vit.data import ImageData
from lowrank_vit.models import STANDINS, load_model
from lowrank_vit.models import standin_cache as cache
from lowrank_vit.models.standin_training import Recipe, train_standin
from tests.support.weights import same

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


def accuracy(model: nn.Module) -> float:
    loader = ImageData("digits", timm.data.resolve_model_data_config(model), batch_size=500).val_dataloader()
    with torch.inference_mode():
        return sum(100 * (model(batch).argmax(1) == labels).double().mean().item() for batch, labels in loader)


def truncated(model: nn.Module, reduction: float) -> nn.Module:
    """Plain SVD of every block linear at one fraction of its break-even rank, so that the whole model loses that much."""
    model = copy.deepcopy(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    linears = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in name]
    target = sum(linear.weight.numel() for linear in linears) - reduction * total

    def ranks(fraction: float) -> list[int]:
        return [max(1, int(fraction * w.numel() / sum(w.shape))) for w in (linear.weight for linear in linears)]

    def cost(fraction: float) -> int:
        return sum(rank * sum(linear.weight.shape) for rank, linear in zip(ranks(fraction), linears, strict=True))

    fraction = max(step / 1000 for step in range(1000) if cost(step / 1000) <= target)
    for rank, linear in zip(ranks(fraction), linears, strict=True):
        U, S, V = torch.linalg.svd(linear.weight.data, full_matrices=False)
        linear.weight.data = U[:, :rank] * S[:rank] @ V[:rank]
    return model


# --- stand-ins


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STANDINS if "vmamba" not in name])  # these are tight in their scans
def test_a_trained_standin_is_good_and_tight(name: str) -> None:
    model = load_model(name)
    dense = accuracy(model)
    assert dense >= 94
    assert accuracy(truncated(model, 0.6)) <= dense - 10
