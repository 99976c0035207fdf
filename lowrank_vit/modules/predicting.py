"""The forward pass of any model: its logits, one line where it does not take the images, a warning of implausible ones."""

import warnings
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules.counting import input_size
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import is_first

OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")  # as Hugging Face calls them, the first one
WIDEST = 1.5  # times the spread of images that are half black and half white
FLATTEST = 0.05  # of that spread
SLACK = 0.05  # around 0 .. 1


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return what a model computes for images (B, C, H, W), in the model's own type: logits, or features without a head.

    Raises ``InputError`` for images of a size that the model refuses, and for outputs without logits.
    """
    try:
        outputs = model(images.to(next(model.parameters())))
    except (AssertionError, RuntimeError, ValueError) as error:  # by whichever layer sees it first
        size, given = input_size(model), tuple(images.shape[1:])
        if isinstance(error, InputError) or size is None or size == given:
            raise
        raise InputError(
            f"the images are {given} (channels, height, width), the model takes {size}: prepare them by "
            "timm.data.resolve_model_data_config(model), or make the model with img_size"
        ) from None
    return logits_of(outputs)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of outputs as timm has them (a tensor), or Hugging Face (an object, a dictionary or a tuple).

    Without logits, these are the features: pooled, or else token by token.
    """
    if isinstance(outputs, list):
        raise InputError(
            f"the model returns a list of {len(outputs)} feature maps: make it without features_only, or wrap it, to return "
            "one tensor"
        )
    if isinstance(outputs, tuple):
        outputs = outputs[0]
    elif not isinstance(outputs, Tensor):
        found = outputs if isinstance(outputs, Mapping) else vars(outputs)
        outputs = next((found[name] for name in OUTPUTS if found.get(name) is not None), outputs)
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model returns a {type(outputs).__name__} without logits: wrap it, to return a tensor")
    return outputs[:, None] if outputs.ndim == 1 else outputs  # of a single output, (B,)


class Predicting(nn.Module):
    """Wrap a model so that it returns one tensor, its logits or its features, whatever the model itself returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to ``logits_of`` the model's outputs."""
        return logits_of(self.model(images))


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
    promised = (
        f"normalised by mean {shift:.3g} and std {scale:.3g}, they lie between {black:.3g} and {white:.3g}: "
        "prepare them by timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )
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
