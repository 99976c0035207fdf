"""The VMamba stand-ins need their scans, and keep their accuracy where the rest is fitted to what is left."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lowrank_vit import MeanScan, compress, mean_scan
from lowrank_vit.data import ImageData
from lowrank_vit.models import load_model
from lowrank_vit.records.images import Images

TIGHT = "digits_vmamba_tiny"
pytestmark = pytest.mark.slow


def digits(model: nn.Module) -> ImageData:
    return ImageData("digits", timm.data.resolve_model_data_config(model), calibration_samples=512, batch_size=128)


def accuracy(model: nn.Module) -> float:
    hits, count = 0, 0
    with torch.inference_mode():
        for images, labels in digits(model).val_dataloader():
            hits, count = hits + int((model(images).argmax(1) == labels).sum()), count + len(labels)
    return 100 * hits / count


def replaced(model: nn.Module, method: MeanScan) -> float:
    small, _ = mean_scan(model, digits(model).calibration_dataloader(), layers=6, method=method, device="cpu")
    return accuracy(small)


def test_it_needs_its_scans_and_a_refit_makes_up_for_them() -> None:
    model = load_model(TIGHT)
    dense = accuracy(model)
    assert dense >= 97
    assert replaced(model, MeanScan(mode="left_out")) <= dense - 5
    assert replaced(model, MeanScan()) <= 60
    assert replaced(model, MeanScan(refit="dropped")) >= 97


def test_best_loses_two_points_at_most() -> None:
    model = load_model(TIGHT)
    data = digits(model)
    small, _ = compress(model, Images(data.calibration_dataloader()), "best", 0.4, device="cpu")
    assert accuracy(small) >= accuracy(model) - 2
