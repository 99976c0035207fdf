"""Image files in, and a grid of images out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lowrank_vit.data.decoding import read_image, to_channels
from lowrank_vit.data.folders import SUFFIXES
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import write_bytes


def load_images(folder: Path, channels: int, side: int) -> Tensor:
    """Load all image files of a folder, cut to the square in the middle: (N, C, side, side) in -1..1.

    Raises ``InputError`` where there are none, and for one that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: --images takes a folder of image files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no image files ({', '.join(SUFFIXES)}): put a few of the new thing there")
    images = []
    for path in files:
        image = to_channels(read_image(path.read_bytes(), str(path), side), channels)
        pixels = np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        images.append(torch.from_numpy(pixels.reshape(side, side, channels)).permute(2, 0, 1))
    return torch.stack(images).div(127.5).sub(1)


def save_grid(rows: list[Tensor], path: Path, *, enlarged: int = 1) -> None:
    """Write rows of images, each (N, C, H, W) in -1..1, below one another as a PNG; ``enlarged``: pixels for each."""
    grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    pixels = grid.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if enlarged > 1:
        picture = picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    write_bytes(path, buffer.getvalue())
