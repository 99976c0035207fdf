"""The sizes of VMamba that have official checkpoints. Importing this module registers them in timm."""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from lowrank_vit.models.vmamba import VSSM

CONFIG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "first_conv": "patch_embed.0",
    "classifier": "classifier.head",
    "license": "mit",
    "origin_url": "https://github.com/MzeroMiko/VMamba",
    "paper_ids": "arXiv:2401.10166",
}
VMAMBAS = (
    "vmamba_tiny_s1l8",
    "vmamba_small_s2l15",
    "vmamba_base_s2l15",
    "vmamba_tiny_s2l5",
    "vmamba_small_s1l20",
    "vmamba_base_s1l20",
    "vanilla_vmamba_tiny",
)
default_cfgs = generate_default_cfgs({name: dict(CONFIG) for name in VMAMBAS})


def build_vmamba(name: str, pretrained: bool, kwargs: dict[str, Any], **architecture: Any) -> nn.Module:
    """Build a VMamba under a registered name; ``kwargs`` override the name's own ``architecture``."""
    model: nn.Module = build_model_with_cfg(VSSM, name, pretrained, **{**architecture, **kwargs})
    return model


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-T: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_tiny_s1l8", pretrained, kwargs, depths=(2, 2, 8, 2), dims=96, ssm_ratio=1)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-S: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_small_s2l15", pretrained, kwargs, depths=(2, 2, 15, 2), dims=96, ssm_ratio=2)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-B: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_base_s2l15", pretrained, kwargs, depths=(2, 2, 15, 2), dims=128, ssm_ratio=2)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-T of fewer, wider blocks: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_tiny_s2l5", pretrained, kwargs, depths=(2, 2, 5, 2), dims=96, ssm_ratio=2)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-S of more, narrower blocks: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_small_s1l20", pretrained, kwargs, depths=(2, 2, 20, 2), dims=96, ssm_ratio=1)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build VMamba-B of more, narrower blocks: images (N, 3, H, W) to logits (N, 1000)."""
    return build_vmamba("vmamba_base_s1l20", pretrained, kwargs, depths=(2, 2, 20, 2), dims=128, ssm_ratio=1)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the first VMamba-T (v0), of 16 states a channel: images (N, 3, H, W) to logits (N, 1000)."""
    first = {"depths": (2, 2, 9, 2), "ssm_ratio": 2, "state": 16, "mlp_ratio": 0, "gated": True, "early_conv": False}
    return build_vmamba("vanilla_vmamba_tiny", pretrained, kwargs, **first)
