"""Small untrained timm models and random images."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

VIT = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
SWIN = {
    "img_size": 16,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 2),
    "window_size": 4,
    "num_classes": 10,
}
NAMES = {"vit": ("vit_tiny_patch16_224", VIT), "swin": ("swin_tiny_patch4_window7_224", SWIN)}


def tiny(kind: str = "vit", seed: int = 0) -> nn.Module:
    """A tiny model of a kind, with weights large enough that every layer matters."""
    torch.manual_seed(seed)
    name, arguments = NAMES[kind]
    model = timm.create_model(name, pretrained=False, **arguments).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def images(count: int, kind: str = "vit", seed: int = 1) -> Tensor:
    """Random images of the size that the model takes."""
    size = NAMES[kind][1]["img_size"]
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
