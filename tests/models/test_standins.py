"""The small stand-ins: trained once for each recipe and seed, on disk from then on, and good."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from lowrank_vit.data import ImageData
from lowrank_vit.models import STANDINS, is_standin, load_model
from lowrank_vit.models import standin_training as cache
from lowrank_vit.models.standin_training import Recipe, train_standin
from lowrank_vit.modules.counting import parameter_count
from tests.support.weights import same

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


def test_there_is_a_base_and_a_small_one_of_each_type() -> None:
    pairs = {f"digits_{kind}_{size}" for kind in ("deit", "vit", "swin") for size in ("base", "small")}
    vmambas = {f"digits_vmamba_{size}" for size in ("base", "conv", "tiny")}
    assert set(STANDINS) == pairs | {"digits_deit_tiny"} | vmambas
    assert is_standin(SMALL)
    assert not is_standin("deit_tiny_patch16_224")
    for kind in ("deit", "vit", "swin"):
        base, small = (
            sum(p.numel() for p in timm.create_model(f"digits_{kind}_{s}").parameters()) for s in ("base", "small")
        )
        assert 1.5 <= base / small <= 3
    small, tiny = (parameter_count(timm.create_model(f"digits_deit_{size}")) for size in ("small", "tiny"))
    assert 1.5 <= small / tiny <= 3


@pytest.mark.parametrize("name", STANDINS)
def test_a_standin_is_a_timm_model_with_its_data_config(name: str) -> None:
    model = timm.create_model(name).eval()
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 8, 8)
    assert config["mean"] == ((0.5,) if "digits_vit" in name else (0.305,))
    assert config["crop_pct"] == 1.0
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    shapes = {tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
    assert len(shapes) >= 4
    in_blocks = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n)
    share = 0.6 if "vmamba" in name else 0.8  # the downsampling convolutions of VMamba's few channels weigh
    assert in_blocks > share * sum(parameter.numel() for parameter in model.parameters())


def test_the_swins_windows_are_shifted() -> None:
    model = timm.create_model("digits_swin_small")
    assert any(any(shift) for shift in (block.shift_size for stage in model.layers for block in stage.blocks))
    assert model.layers[1].downsample.reduction.in_features == 48


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


def test_seeds_and_names_are_cached_apart(cache_folder: Path, trainings: list) -> None:
    assert not same(load_model(SMALL), load_model(SMALL, seed=1))
    load_model("digits_swin_small")
    assert trainings == [(SMALL, 0), (SMALL, 1), ("digits_swin_small", 0)]


def test_another_recipe_is_another_training(
    cache_folder: Path, trainings: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(SMALL)
    monkeypatch.setattr(cache, "RECIPE", Recipe(epochs=3))
    load_model(SMALL)
    assert len(trainings) == 2


def test_a_damaged_cache_file_is_replaced(cache_folder: Path, trainings: list) -> None:
    first = load_model(SMALL)
    (file,) = cache_folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:999])
    with pytest.warns(UserWarning, match="damaged"):
        assert same(load_model(SMALL), first)
    assert same(load_model(SMALL), first)
    assert len(trainings) == 2


def test_who_asks_at_once_waits(cache_folder: Path, trainings: list) -> None:
    threads = [threading.Thread(target=load_model, args=(SMALL,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trainings) == 1
    assert not list(cache_folder.glob("*.tmp"))


def test_without_a_writable_cache_it_is_trained_all_the_same(
    trainings: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWRANK_VIT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be cached"):
        load_model(SMALL)
    assert len(trainings) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STANDINS if "vmamba" not in name])  # these are tight in their scans
def test_a_trained_standin_is_good_and_tight(name: str) -> None:
    model = load_model(name)
    dense = accuracy(model)
    assert dense >= 94
    assert accuracy(truncated(model, 0.6)) <= dense - 10
