"""Small image folders and what their loaders give: labels, images, and the one line of an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lowrank_vit.data import ImageData
from lowrank_vit.runtime.errors import InputError

CONFIG = {
    "input_size": (3, 16, 16),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9,
    "crop_mode": "center",
}
GREY = {**CONFIG, "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
TENCH, TOILET_PAPER = "n01440764", "n15075141"  # the first and the last of ImageNet-1k


def picture(value: int, size: int = 20) -> Image.Image:
    pixels = np.random.default_rng(value).integers(0, 256, (size, size + value % 3, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def write(folder: Path, *values: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        picture(value).save(folder / f"{value:03}.png")


def data(folder: Path | str, config: dict[str, Any] = CONFIG, **options: Any) -> ImageData:
    spec = folder if isinstance(folder, str) else f"imagefolder:{folder}"
    return ImageData(spec, config, **{"workers": 0, "batch_size": 4, "calibration_samples": 6, **options})


def labels(loader: DataLoader) -> list[int]:
    return [label for _, batch in loader for label in batch.tolist()]


def images(loader: DataLoader) -> torch.Tensor:
    return torch.cat([batch for batch, _ in loader])


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
