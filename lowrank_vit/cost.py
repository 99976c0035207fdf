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


def multiply_accumulates(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of the matrix products and convolutions of one image of ``input_size`` (C, H, W).

    Counted on a real forward pass, so fused attention, windows and replaced layers count as they run.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device)
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model.eval()(image)
    model.train(was_training)
    return counter.get_total_flops() // 2
