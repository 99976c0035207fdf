"""Augmentations for distillation: mirror images and crops, by the random numbers that the caller passes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CROPS = (0.25, 1.0)  # shares of a photograph's area, within which a crop keeps its meaning


def augment(images: Tensor, draws: Tensor, flips: bool, crop_scale: tuple[float, float] | None) -> Tensor:
    """Mirror half of the images, (B, C, H, W), and enlarge a random crop of each. draws: (B, 4), uniform in [0, 1).

    ``crop_scale``: the least and the greatest share of the area that is left; crops keep the image's proportions.
    """
    if flips:
        images = torch.where((draws[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images)
    if crop_scale is None:
        return images
    side = (crop_scale[0] + (crop_scale[1] - crop_scale[0]) * draws[:, 1]).sqrt()
    centre = (1 - side)[:, None] * (2 * draws[:, 2:] - 1)  # in units of half the image, from its middle
    corners = torch.cat([torch.diag_embed(side[:, None].expand(-1, 2)), centre[:, :, None]], -1).to(images.dtype)
    grid = F.affine_grid(corners, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def augmentations(mirrors: bool) -> dict[str, Any]:
    """Return the fields of ``Distillation`` for images that keep their meaning when mirrored and cropped, or for others."""
    return {"flips": mirrors, "crop_scale": CROPS if mirrors else None}
