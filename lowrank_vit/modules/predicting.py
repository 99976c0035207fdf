"""The forward pass of any model: its logits, and one line where it does not take the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules.counting import input_size
from lowrank_vit.runtime.errors import InputError

OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")  # as Hugging Face calls them, the first one


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
    return outputs


class Predicting(nn.Module):
    """Wrap a model so that it returns one tensor, its logits or its features, whatever the model itself returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to ``logits_of`` the model's outputs."""
        return logits_of(self.model(images))
