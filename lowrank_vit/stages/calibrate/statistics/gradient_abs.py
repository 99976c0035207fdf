"""Magnitudes of the loss's gradient by a layer's weight."""

from __future__ import annotations

from typing import ClassVar

import torch

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("gradient_abs")
class GradientAbs:
    """Collect ``gradient_abs``, (n, d): the sum over images of ``|X^T G|``, the weight's gradient by an image's loss."""

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch, image by image, so that no more than one (n, d) matrix is made at a time."""
        total = torch.zeros(seen.site.in_features, seen.site.out_features, device=seen.x.device)
        for x, slopes in zip(seen.by_image, seen.slopes, strict=True):
            total += (x.T @ slopes).abs()
        sums.add("gradient_abs", total)
