"""Exact sizes: parameters, bytes and multiply-accumulates of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(model: nn.Module) -> int:
    """Parameters of the whole model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters in the types they have."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) of the images that a timm model takes: what its patch embedding says, else its configuration."""
    embedding = getattr(model, "patch_embed", None)
    size, projection = getattr(embedding, "img_size", None), getattr(embedding, "proj", None)
    if size is not None and projection is not None:
        return projection.in_channels, *size
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return None if configured is None else tuple(configured)


def multiply_accumulates(model: nn.Module, size: Sequence[int]) -> int:
    """Multiply-accumulates of the matrix products and convolutions of one image of ``size`` (C, H, W).

    Counted on a real forward pass, so fused attention, windows and replaced layers count as they run.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device)
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.eval()(image)
    model.train(was_training)
    return counter.get_total_flops() // 2
