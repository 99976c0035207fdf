"""Images that cannot be what a model was trained on are told of, with figures; others are not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import lowrank_vit
import lowrank_vit.models  # the stand-ins register with timm
from lowrank_vit.modules.plausible import implausible
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
