"""The teacher of a distillation: checks, and its outputs kept in memory."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.objectives import Objective, Outputs
from lowrank_vit.runtime.errors import InputError

KNOWN_BYTES = 2**30  # the teacher's outputs are kept in memory up to this size, instead of computed every epoch
BATCH = 64


def check_settings(
    epochs: int,
    batch_size: int,
    rates: Mapping[str, float],
    weights: Sequence[float],
    warm_up: float,
    gradient_clip: float | None,
    crop_scale: tuple[float, float] | None,
    mix: float,
) -> None:
    """Raise ``InputError`` for settings of a distillation that are out of range."""
    if epochs < 1 or batch_size < 1 or not all(0 < value < math.inf for value in rates.values()):
        raise InputError("epochs, lr, vector_lr, temperature and batch_size must be positive, and finite")
    if not (all(0 <= weight < math.inf for weight in weights) and 0 <= warm_up < 1):
        raise InputError(
            "weight_decay, logit_weight, feature_weight and block_weight must not be negative; warm_up must be from 0 to "
            "below 1"
        )
    if gradient_clip is not None and gradient_clip <= 0:
        raise InputError("gradient_clip must be positive, or None for no clipping")
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"crop_scale {crop_scale} must be two shares of the area, the lesser first")
    if not 0 <= mix <= 0.5:
        raise InputError(f"mix is {mix}: the share of another image must be between 0 and 0.5")


def check_pair(objective: Objective, model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Raise ``InputError`` unless both models can be compared on the images, and the student can be trained."""
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)}: distillation needs (N, C, H, W), at least one")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("a quantised model cannot be distilled: distil the one it was made from, then quantise that")
    shapes = []
    for each in (teacher, model):
        with torch.no_grad():
            seen = objective.targets(each, images[:1].to(next(each.parameters())), blocks=True)
            shapes.append([output.shape[1:] for output in seen])
    names = ["features", "logits", *(f"block {index}'s outputs" for index in range(len(shapes[0]) - 2))]
    for name, dense, small in itertools.zip_longest(names, *shapes):
        if dense != small:
            raise InputError(
                f"the teacher's {name} are {dense and tuple(dense)}, the model's {small and tuple(small)}: "
                "pass the dense model that was compressed"
            )


def inputs_hash(model: nn.Module, teacher: nn.Module, images: Tensor) -> str:
    """Return the sha256 of what a distillation starts with: both models' weights, and the images."""
    digest = hashlib.sha256(f"{model_hash(model)} {model_hash(teacher)} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def remember(
    objective: Objective, teacher: nn.Module, images: Tensor, flips: bool, device: torch.device, blocks: bool = False
) -> Outputs | None:
    """Compute the teacher's outputs for all images (N, C, H, W) and, with ``flips``, for their mirror images.

    Returns (1 or 2, N, ...) of each output; None where that would take more than ``KNOWN_BYTES``.
    """
    size = sum(output.nbytes for output in objective.targets(teacher, images[:1].to(device), blocks))
    if (1 + flips) * len(images) * size > KNOWN_BYTES:
        return None
    answers = [
        objective.targets(teacher, batch.flip(-1) if mirrored else batch, blocks)
        for mirrored in range(1 + flips)
        for batch in (part.to(device) for part in images.split(BATCH))
    ]
    return tuple(torch.cat(parts).unflatten(0, (1 + flips, -1)) for parts in zip(*answers, strict=True))
