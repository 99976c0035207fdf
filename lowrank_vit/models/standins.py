"""Stand-ins: a DeiT of three sizes, a ViT and a Swin of two for the digits, small enough that plain SVD visibly hurts.

Three more are of VMamba: on maps of 4 x 4 tokens a convolution of each channel does the work of the scans, so two of them
have none, and need their scans; the third has the blocks as they are.

Importing this module registers them in timm, so that ``timm.create_model("digits_deit_small")`` builds one (untrained).
The types differ as the real ones do: DeiT classifies from its class token and normalises with the data set's own mean
and deviation; ViT pools the tokens, normalises with 0.5 and has another depth and MLP ratio; Swin attends within
windows of 2 x 2 tokens, shifted in every other block, and merges patches between its two stages.
"""

from typing import Any

from timm.models import generate_default_cfgs
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lowrank_vit.data.digits import CLASSES
from lowrank_vit.models.vmamba import VSSM, registered

DIGITS: dict[str, Any] = {
    "input_size": (1, 8, 8),
    "fixed_input_size": True,
    "num_classes": CLASSES,
    "mean": (0.305,),  # of the training scans
    "std": (0.376,),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
DEIT = {"patch_size": 2, "mlp_ratio": 2}
VIT = {"patch_size": 2, "mlp_ratio": 4, "class_token": False, "global_pool": "avg"}
SWIN = {"patch_size": 2, "mlp_ratio": 2, "window_size": 2, "depths": (2, 2), "drop_path_rate": 0.0}
VMAMBA = {"patch_size": 2, "mlp_ratio": 2, "in_chans": 1, "early_conv": False}
FAMILIES: dict[str, tuple[type[nn.Module], dict[str, Any], dict[str, Any]]] = {  # class, its arguments, and its images
    "deit": (VisionTransformer, DEIT, {}),
    "vit": (VisionTransformer, VIT, {"mean": (0.5,), "std": (0.5,)}),
    "swin": (SwinTransformer, SWIN, {"classifier": "head.fc"}),
    "vmamba": (
        VSSM,
        VMAMBA,
        {"classifier": "classifier.head", "first_conv": "patch_embed.0", "fixed_input_size": False},
    ),
}
SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("deit", "base"): {"embed_dim": 32, "depth": 3, "num_heads": 4},
    ("deit", "small"): {"embed_dim": 24, "depth": 3, "num_heads": 3},
    ("deit", "tiny"): {"embed_dim": 16, "depth": 3, "num_heads": 2},
    ("vit", "base"): {"embed_dim": 24, "depth": 4, "num_heads": 3},
    ("vit", "small"): {"embed_dim": 20, "depth": 3, "num_heads": 2},
    ("swin", "base"): {"embed_dim": 18, "num_heads": (3, 6)},
    ("swin", "small"): {"embed_dim": 12, "num_heads": (2, 4)},
    ("vmamba", "base"): {"depths": (4, 2), "dims": 24, "kernel": 1},
    ("vmamba", "conv"): {"depths": (2, 6), "dims": 16},
    ("vmamba", "tiny"): {"depths": (4, 2), "dims": 16, "kernel": 1},
}
default_cfgs = generate_default_cfgs(
    {f"digits_{family}_{size}": {**DIGITS, **FAMILIES[family][2]} for family, size in SIZES}
)
STANDINS: tuple[str, ...] = tuple(default_cfgs)

for (_family, _size), _own in SIZES.items():
    registered(f"digits_{_family}_{_size}", __name__, FAMILIES[_family][0], {**FAMILIES[_family][1], **_own})


def is_standin(name: str) -> bool:
    """Tell whether ``name`` is one of the embedded stand-ins."""
    return name in STANDINS
