"""What a distillation shows to the dense model, and what that says: logits, pooled features, outputs of its blocks."""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.cache import model_hash
from lowrank_vit.errors import InputError
from lowrank_vit.layers import QuantizedLinear

KNOWN_BYTES = 2**30  # what the teacher says is kept in memory up to this size, instead of asking it every epoch
BATCH = 64
BLOCK = r"(?:.*\.)?blocks\.\d+"
CROPS = (0.25, 1.0)  # shares of the area of a photograph in which it keeps its meaning
Outputs = tuple[Tensor, ...]  # pooled features (B, width), logits (B, classes), and outputs of blocks (B, ..., width)


def augment(images: Tensor, draws: Tensor, flips: bool, crop_scale: tuple[float, float] | None) -> Tensor:
    """Mirror half of the images, (B, C, H, W), and enlarge a random part of each. draws: (B, 4), uniform in [0, 1).

    ``crop_scale``: the least and the greatest share of the area that is left, in the image's own proportions.
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
    """The fields of ``Distillation`` for images that keep their meaning when mirrored and cropped, or for others."""
    return {"flips": mirrors, "crop_scale": CROPS if mirrors else None}


def outputs(model: nn.Module, images: Tensor, blocks: bool = False) -> Outputs:
    """The features that the classifier is given and the logits of a timm model, and with ``blocks`` what each block gives."""
    timm_model: Any = model
    seen: list[Tensor] = []
    listened = [module for name, module in model.named_modules() if blocks and re.fullmatch(BLOCK, name)]
    hooks = [module.register_forward_hook(lambda module, inputs, output: seen.append(output)) for module in listened]
    try:
        features = timm_model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return timm_model.forward_head(features, pre_logits=True), timm_model.forward_head(features), *seen


def check_pair(model: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Raise ``InputError`` unless both models can be compared on the images, and the student can be trained."""
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)}: distillation needs (N, C, H, W), at least one")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError("a quantised model cannot be distilled: distil the one it was made from, then quantise that")
    found = []
    for each in (teacher, model):
        if not hasattr(each, "forward_features"):
            raise InputError(f"{type(each).__name__} has no forward_features(): distillation needs timm models")
        with torch.no_grad():
            seen = outputs(each, images[:1].to(next(each.parameters())), blocks=True)
            found.append([output.shape[1:] for output in seen])
    names = ["features", "logits", *(f"block {index}'s outputs" for index in range(len(found[0]) - 2))]
    for name, dense, small in itertools.zip_longest(names, *found):
        if dense != small:
            raise InputError(
                f"the teacher's {name} are {dense and tuple(dense)}, the model's {small and tuple(small)}: "
                "hand in the dense model that was compressed"
            )


def inputs_hash(model: nn.Module, teacher: nn.Module, images: Tensor) -> str:
    """What a distillation begins with: the sha256 of both models' weights and of the images."""
    digest = hashlib.sha256(f"{model_hash(model)} {model_hash(teacher)} {tuple(images.shape)}".encode())
    digest.update(images.contiguous().cpu().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def remember(
    teacher: nn.Module, images: Tensor, flips: bool, device: torch.device, blocks: bool = False
) -> Outputs | None:
    """What the teacher says of all images (N, C, H, W) and, with ``flips``, of their mirror images: (1 or 2, N, ...) each.

    None where that would take more than ``KNOWN_BYTES``.
    """
    size = sum(output.nbytes for output in outputs(teacher, images[:1].to(device), blocks))
    if (1 + flips) * len(images) * size > KNOWN_BYTES:
        return None
    told = [
        outputs(teacher, batch.flip(-1) if mirrored else batch, blocks)
        for mirrored in range(1 + flips)
        for batch in (part.to(device) for part in images.split(BATCH))
    ]
    return tuple(torch.cat(parts).unflatten(0, (1 + flips, -1)) for parts in zip(*told, strict=True))
