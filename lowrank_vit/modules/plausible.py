"""Whether images can be what a model was trained on, by the mean and the spread of their values."""

from __future__ import annotations

import warnings
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from lowrank_vit.runtime.processes import is_first

WIDEST = 1.5  # times the spread of images that are half black and half white
FLATTEST = 0.05  # of that spread
SLACK = 0.05  # around 0 .. 1


def implausible(model: nn.Module, images: Tensor) -> str:
    """Say why images (B, C, H, W) cannot be normalised as the model's ``pretrained_cfg`` promises; nothing if they can.

    Pixels p of 0 .. 1 become ``(p - mean) / std``; whatever they show, their mean lies between those of black and white.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    if not images.numel() or not config.get("mean") or not config.get("std"):
        return ""
    shift, scale = fmean(config["mean"]), fmean(config["std"])
    black, white = -shift / scale, (1 - shift) / scale
    values = images.detach().float()
    mean, spread = values.mean().item(), values.std(correction=0).item()
    low, high = values.min().item(), values.max().item()
    figures = f"mean {mean:.3g}, spread {spread:.3g}, from {low:.3g} to {high:.3g}"
    promised = f"normalised by mean {shift:.3g} and std {scale:.3g}, they lie between {black:.3g} and {white:.3g}"
    widest = (white - black) / 2
    if spread < FLATTEST * widest:
        return f"the images hardly vary ({figures}): check how they are read"
    if spread > WIDEST * widest + 0.5 or not black - widest <= mean <= white + widest:
        return f"the images are far from what the model was trained on ({figures}); {promised}"
    if low >= -SLACK and high <= 1 + SLACK and black < -0.5:
        return f"the images look as if they were not normalised ({figures}); {promised}"
    return ""


def tell_implausible(model: nn.Module, images: Tensor) -> None:
    """Warn of images that cannot be what the model was trained on."""
    line = implausible(model, images) if is_first() else ""
    if line:
        warnings.warn(line, stacklevel=2)
