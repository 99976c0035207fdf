"""A small VMamba with random weights that all matter, and images for it."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

import lowrank_vit.models  # noqa: F401  (it registers VMamba with timm)
from tests.support.models import stirred

SIZES = {"depths": (2, 1), "dims": 12, "in_chans": 1, "num_classes": 5, "mlp_ratio": 2, "patch_size": 2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "v2": {**SIZES, "early_conv": False},
    "v0": {**SIZES, "ssm_ratio": 2, "state": 3, "mlp_ratio": 0, "gated": True, "early_conv": False},
}


def vmamba(version: str = "v2", seed: int = 0) -> nn.Module:
    """A model with two blocks of width 12 and one of 24, for images (B, 1, 8, 8)."""
    torch.manual_seed(seed)
    model = timm.create_model("vmamba_tiny_s1l8", **ARGUMENTS[version]).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 8, 12)}
    return stirred(model, 0.2).requires_grad_(False)


def maps(count: int, seed: int = 1) -> Tensor:
    """Random images, not square: (count, 1, 8, 12)."""
    return torch.randn(count, 1, 8, 12, generator=torch.Generator().manual_seed(seed))
