"""Images that cannot be what a model was trained on are told of, with figures; others are not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import lowrank_vit
import lowrank_vit.models  # the stand-ins register with timm
from lowrank_vit.data import ImageData
from lowrank_vit.modules.predicting import implausible
from lowrank_vit.stages.evaluate.accuracy import evaluate
from tests.support.hardware import on_cpu
from tests.support.models import images, tiny

MEANS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "halves": ((0.5,) * 3, (0.5,) * 3)}


def normalising(kind: str) -> nn.Module:
    model = nn.Linear(1, 1)
    model.pretrained_cfg = dict(zip(("mean", "std"), MEANS[kind], strict=True))  # type: ignore[assignment]
    return model


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) ** 1.5


@pytest.mark.parametrize("kind", MEANS)
def test_images_of_another_scale(kind: str, pixels: Tensor) -> None:
    model, (mean, std) = normalising(kind), [torch.tensor(each)[:, None, None] for each in MEANS[kind]]
    assert implausible(model, (pixels - mean) / std) == ""
    assert implausible(model, torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))) == ""
    assert "far from" in implausible(model, 255 * pixels)
    assert "far from" in implausible(model, (255 * pixels - mean) / std)
    assert "not normalised (mean 0.397, spread 0.298" in implausible(model, pixels)
    assert "hardly vary" in implausible(model, 0 * pixels)
    assert implausible(nn.Linear(1, 1), pixels) == ""  # it promises nothing


def test_real_images_are_plausible() -> None:
    model = timm.create_model("digits_deit_small")
    data = ImageData("digits", timm.data.resolve_model_data_config(model), workers=0)
    assert implausible(model, next(iter(data.calibration_dataloader()))[0]) == ""


@pytest.mark.real_data
def test_photographs_are_plausible(real_data: Path) -> None:
    for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224"):
        model = timm.create_model(name)
        config = timm.data.resolve_model_data_config(model)
        data = ImageData(f"imagefolder:{real_data}/imagenet-samples", config, batch_size=1, limit=60, workers=0)
        assert not any(implausible(model, batch) for batch, _ in data.val_dataloader())


def test_compress_and_evaluate_tell() -> None:
    model, odd = tiny(), 255 * images(8).abs()
    with pytest.warns(UserWarning, match="far from what the model was trained on") as told:
        lowrank_vit.compress(model, [odd], "svd", 0.2, device="cpu")
    assert len([each for each in told if "far from" in str(each.message)]) <= 1
    with pytest.warns(UserWarning, match="far from what the model was trained on"):
        evaluate(model, [(odd, torch.zeros(8, dtype=torch.long))], **on_cpu())
    with pytest.warns(UserWarning, match="a single image"):
        lowrank_vit.compress(model, [images(1)], "exact", 0.2, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lowrank_vit.compress(model, [images(8)], "exact", 0.2, device="cpu")
