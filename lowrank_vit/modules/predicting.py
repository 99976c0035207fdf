"""The forward pass of any model: its logits, and one line where it does not take the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules.counting import input_size
from lowrank_vit.runtime.errors import InputError


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
    """Return the logits of outputs as timm has them (a tensor), or Hugging Face (an object, a dictionary or a tuple)."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits", outputs)
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    else:
        outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model returns a {type(outputs).__name__} without logits: wrap it, to return a tensor")
    return outputs
