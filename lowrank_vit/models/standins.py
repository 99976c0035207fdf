"""Stand-ins: a DeiT of three sizes, a ViT and a Swin of two for the digits, small enough that plain SVD visibly hurts.

Three more are of VMamba: on maps of 4 x 4 tokens a convolution of each channel does the work of the scans, so two of them
have none, and need their scans; the third has the blocks as they are.

Importing this module registers them in timm, so that ``timm.create_model("digits_deit_small")`` builds one (untrained).
The types differ as the real ones do: DeiT classifies from its class token and normalises with the data set's own mean
and deviation; ViT pools the tokens, normalises with 0.5 and has another depth and MLP ratio; Swin attends within
windows of 2 x 2 tokens, shifted in every other block, and merges patches between its two stages.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lowrank_vit.data.digits import CLASSES
from lowrank_vit.models.vmamba import build_vmamba

DIGITS_MEAN, DIGITS_STD = (0.305,), (0.376,)  # of the training scans
VIT_MEAN, VIT_STD = (0.5,), (0.5,)
VMAMBA: dict[str, Any] = {"classifier": "classifier.head", "first_conv": "patch_embed.0", "fixed_input_size": False}


def _pretrained_cfg(
    mean: tuple[float, ...], std: tuple[float, ...], classifier: str = "head", **changes: Any
) -> dict[str, Any]:
    return {
        "input_size": (1, 8, 8),
        "fixed_input_size": True,
        "num_classes": CLASSES,
        "mean": mean,
        "std": std,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": classifier,
        "license": "apache-2.0",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {
        "digits_deit_base": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD),
        "digits_deit_small": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD),
        "digits_deit_tiny": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD),
        "digits_vit_base": _pretrained_cfg(VIT_MEAN, VIT_STD),
        "digits_vit_small": _pretrained_cfg(VIT_MEAN, VIT_STD),
        "digits_swin_base": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD, classifier="head.fc"),
        "digits_swin_small": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD, classifier="head.fc"),
        "digits_vmamba_base": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD, **VMAMBA),
        "digits_vmamba_conv": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD, **VMAMBA),
        "digits_vmamba_tiny": _pretrained_cfg(DIGITS_MEAN, DIGITS_STD, **VMAMBA),
    }
)

STANDINS: tuple[str, ...] = tuple(default_cfgs)


def is_standin(name: str) -> bool:
    """Tell whether ``name`` is one of the embedded stand-ins."""
    return name in STANDINS


def _vision_transformer(name: str, pretrained: bool, kwargs: dict[str, Any], **architecture: Any) -> nn.Module:
    return build_model_with_cfg(VisionTransformer, name, pretrained, **{"patch_size": 2, **architecture, **kwargs})


def _swin_transformer(name: str, pretrained: bool, kwargs: dict[str, Any], **architecture: Any) -> nn.Module:
    fixed = {"patch_size": 2, "window_size": 2, "depths": (2, 2), "drop_path_rate": 0.0}
    return build_model_with_cfg(SwinTransformer, name, pretrained, **{**fixed, **architecture, **kwargs})


def _vmamba(name: str, pretrained: bool, kwargs: dict[str, Any], **architecture: Any) -> nn.Module:
    fixed = {"in_chans": 1, "patch_size": 2, "early_conv": False, "mlp_ratio": 2}
    return build_vmamba(name, pretrained, kwargs, **{**fixed, **architecture})


@register_model
def digits_deit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the DeiT stand-in, width 32, depth 3: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vision_transformer("digits_deit_base", pretrained, kwargs, embed_dim=32, depth=3, num_heads=4, mlp_ratio=2)


@register_model
def digits_deit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the DeiT stand-in, width 24, depth 3: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vision_transformer("digits_deit_small", pretrained, kwargs, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2)


@register_model
def digits_deit_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the DeiT stand-in, width 16, depth 3: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vision_transformer("digits_deit_tiny", pretrained, kwargs, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2)


@register_model
def digits_vit_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ViT stand-in, width 24, depth 4, pooled tokens: images (N, 1, 8, 8) to logits (N, 10)."""
    pooled = {"class_token": False, "global_pool": "avg", "mlp_ratio": 4}
    return _vision_transformer("digits_vit_base", pretrained, kwargs, embed_dim=24, depth=4, num_heads=3, **pooled)


@register_model
def digits_vit_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the ViT stand-in, width 20, depth 3, pooled tokens: images (N, 1, 8, 8) to logits (N, 10)."""
    pooled = {"class_token": False, "global_pool": "avg", "mlp_ratio": 4}
    return _vision_transformer("digits_vit_small", pretrained, kwargs, embed_dim=20, depth=3, num_heads=2, **pooled)


@register_model
def digits_swin_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the Swin stand-in, widths 18 and 36: images (N, 1, 8, 8) to logits (N, 10)."""
    return _swin_transformer("digits_swin_base", pretrained, kwargs, embed_dim=18, num_heads=(3, 6), mlp_ratio=2)


@register_model
def digits_swin_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the Swin stand-in, widths 12 and 24: images (N, 1, 8, 8) to logits (N, 10)."""
    return _swin_transformer("digits_swin_small", pretrained, kwargs, embed_dim=12, num_heads=(2, 4), mlp_ratio=2)


@register_model
def digits_vmamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the VMamba stand-in, widths 24 and 48, without convolutions: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vmamba("digits_vmamba_base", pretrained, kwargs, depths=(4, 2), dims=24, kernel=1)


@register_model
def digits_vmamba_conv(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the VMamba stand-in of whole blocks, widths 16 and 32: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vmamba("digits_vmamba_conv", pretrained, kwargs, depths=(2, 6), dims=16)


@register_model
def digits_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the VMamba stand-in, widths 16 and 32, without convolutions: images (N, 1, 8, 8) to logits (N, 10)."""
    return _vmamba("digits_vmamba_tiny", pretrained, kwargs, depths=(4, 2), dims=16, kernel=1)
