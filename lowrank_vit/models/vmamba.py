"""VMamba (Liu et al. 2024, arXiv 2401.10166), v2 and v0, which timm lacks: this registers the official sizes there.

Written anew, channels last everywhere, with plain linear layers; the names and shapes of the weights are those of the
official checkpoints (github.com/MzeroMiko/VMamba, releases v2cls and v0cls), which are pickles: convert them to safetensors
where you trust them, the averaged weights ``model_ema`` first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowrank_vit.modules.scans import SS2D


class ChannelsLast(nn.Module):
    """Permute (B, C, H, W) to (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """Permute (B, H, W, C) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours, normalise, project to twice the width (v0): (B, H, W, n) to (B, H/2, W/2, 2 n)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x; odd sides lose their last row or column."""
        height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        x = x[:, :height, :width]
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


def convolution(dim: int) -> nn.Sequential:
    """Make the downsampling of v2: a convolution of stride 2 to twice the width, and a norm."""
    conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
    return nn.Sequential(ChannelsFirst(), conv, ChannelsLast(), nn.LayerNorm(2 * dim))


def one_convolution(channels: int, dim: int, patch: int) -> nn.Sequential:
    """Make the patch embedding of v0: a convolution of a patch, and a norm."""
    return nn.Sequential(nn.Conv2d(channels, dim, patch, stride=patch), ChannelsLast(), nn.LayerNorm(dim))


def two_convolutions(channels: int, dim: int) -> nn.Sequential:
    """Make the patch embedding of v2: two convolutions of stride 2 with a norm each."""
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 3, stride=2, padding=1),
        ChannelsLast(),
        nn.LayerNorm(half),
        ChannelsFirst(),
        nn.GELU(),
        nn.Conv2d(half, dim, 3, stride=2, padding=1),
        ChannelsLast(),
        nn.LayerNorm(dim),
    )


class VSSBlock(nn.Module):
    """Compute ``x + SS2D(LN(x))``, then, with an MLP, ``x + MLP(LN(x))``."""

    def __init__(self, dim: int, mlp_ratio: float, mixer: SS2D) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = mixer
        self.norm2 = nn.LayerNorm(dim) if mlp_ratio else None
        self.mlp = Mlp(dim, int(mlp_ratio * dim)) if mlp_ratio else None

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, H, W, n) to (B, H, W, n)."""
        x = x + self.op(self.norm(x))
        return x if self.mlp is None or self.norm2 is None else x + self.mlp(self.norm2(x))


class VSSStage(nn.Module):
    """Run blocks of one width, then the step to the next stage."""

    def __init__(self, blocks: Sequence[VSSBlock], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (B, H, W, n) to (B, H', W', n')."""
        return self.downsample(self.blocks(x))


class VSSM(nn.Module):
    """Classify images by VMamba. ``gated`` is v0: gates, no MLP, patch merging; otherwise v2. ``state``: N, of each channel.

    ``early_conv``: the patch embedding of v2, of patches of 4; ``kernel``: of the mixers' convolutions, 1 for none.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 8, 2),
        dims: int | Sequence[int] = 96,
        num_classes: int = 1000,
        in_chans: int = 3,
        patch_size: int = 4,
        ssm_ratio: float = 1.0,
        state: int = 1,
        mlp_ratio: float = 4.0,
        gated: bool = False,
        early_conv: bool = True,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        widths = [dims * 2**stage for stage in range(len(depths))] if isinstance(dims, int) else list(dims)
        self.num_classes, self.num_features, self.embed_dim = num_classes, widths[-1], widths[-1]
        self.patch_embed = (
            two_convolutions(in_chans, widths[0]) if early_conv else one_convolution(in_chans, widths[0], patch_size)
        )
        self.layers = nn.Sequential()
        for place, (depth, dim) in enumerate(zip(depths, widths, strict=True)):
            mixer: dict[str, Any] = {"gated": gated, "kernel": kernel, "conv_bias": gated}
            blocks = [VSSBlock(dim, mlp_ratio, SS2D(dim, int(ssm_ratio * dim), state, **mixer)) for _ in range(depth)]
            down = nn.Identity() if place == len(depths) - 1 else PatchMerging(dim) if gated else convolution(dim)
            self.layers.append(VSSStage(blocks, down))
        self.classifier = nn.Sequential()
        self.classifier.add_module("norm", nn.LayerNorm(widths[-1]))
        self.classifier.add_module("head", nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity())
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def norm(self) -> nn.Module:
        return self.classifier.get_submodule("norm")

    def get_classifier(self) -> nn.Module:
        return self.classifier.get_submodule("head")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place; none with 0 classes. The features are always the mean over the map."""
        self.num_classes = num_classes
        self.classifier.add_module("head", nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to a normed map, (B, H', W', n)."""
        return self.norm(self.layers(self.patch_embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a normed map (B, H, W, n) to logits, or to its mean, (B, n)."""
        pooled = x.mean((1, 2))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))


RENAMED = {  # names in files from before the releases
    "ln_1.": "norm.", "self_attention.": "op.", "patch_embed.proj.": "patch_embed.0.", "patch_embed.norm.": "patch_embed.2.",
    "op.x_proj.weight": "op.x_proj_weight",
}  # fmt: skip


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Give an official checkpoint today's names and shapes: old names, linear layers as 1 x 1 convolutions, nesting."""
    state: Mapping[str, Any] = state_dict.get("model_ema") or state_dict.get("model") or state_dict
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    made = {}
    for name, tensor in state.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name.startswith(("norm.", "head.")):
            name = f"classifier.{name}"
        made[name] = tensor.view(shapes[name]) if tensor.ndim == 4 and len(shapes.get(name, ())) == 2 else tensor
    return made


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
FIRST = {"mlp_ratio": 0, "gated": True, "early_conv": False}  # of v0
SIZES: dict[str, dict[str, Any]] = {  # v2's T, S and B as they were released, others of the same widths, and v0's T
    "vmamba_tiny_s1l8": {"depths": (2, 2, 8, 2), "dims": 96, "ssm_ratio": 1},
    "vmamba_small_s2l15": {"depths": (2, 2, 15, 2), "dims": 96, "ssm_ratio": 2},
    "vmamba_base_s2l15": {"depths": (2, 2, 15, 2), "dims": 128, "ssm_ratio": 2},
    "vmamba_tiny_s2l5": {"depths": (2, 2, 5, 2), "dims": 96, "ssm_ratio": 2},
    "vmamba_small_s1l20": {"depths": (2, 2, 20, 2), "dims": 96, "ssm_ratio": 1},
    "vmamba_base_s1l20": {"depths": (2, 2, 20, 2), "dims": 128, "ssm_ratio": 1},
    "vanilla_vmamba_tiny": {"depths": (2, 2, 9, 2), "ssm_ratio": 2, "state": 16, **FIRST},
}
VMAMBAS = tuple(SIZES)
default_cfgs = generate_default_cfgs({name: dict(CONFIG) for name in VMAMBAS})


def registered(name: str, module: str, family: type[nn.Module], architecture: Mapping[str, Any]) -> None:
    """Register in timm, for a module with its ``default_cfgs``, a family's model of some architecture under a name."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(family, name, pretrained, **{**architecture, **kwargs})

    build.__name__, build.__module__ = name, module
    register_model(build)


for _name, _architecture in SIZES.items():
    registered(_name, __name__, VSSM, _architecture)
