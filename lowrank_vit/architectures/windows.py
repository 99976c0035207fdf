"""Attention within windows, and feature maps cut into these, padded before they are shifted, as torchvision has them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from timm.models.swin_transformer_v2 import WindowAttention as CosineAttention
from torch import Tensor, nn

from lowrank_vit.architectures.plain import COSINE, plain_attention
from lowrank_vit.records.sites import AttentionSite


def window_attention(name: str, module: nn.Module) -> AttentionSite | None:
    """Describe timm's attention within windows, V1 or V2; None for another module."""
    if type(module) is CosineAttention:
        return plain_attention(name, module, dense_logits=COSINE)
    if type(module) is not WindowAttention:
        return None
    height, width = module.window_size
    return plain_attention(name, module, window_size=(height, width))


def padded(sides: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """Return the sides of a feature map, (H, W), that is padded to whole windows."""
    (height, width), (down, across) = sides, window
    return height + -height % down, width + -width % across


def cut_windows(x: Tensor, window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Pad, shift and cut a feature map (B, H, W, n) into windows: (B, T, n), one window after the other."""
    (height, width), (down, across) = padded(x.shape[1:3], window), window
    x = F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    x = torch.roll(x, [-each for each in shift], (1, 2))
    return window_partition(x, (down, across)).reshape(len(x), -1, x.shape[-1])


def join_windows(tokens: Tensor, window: Sequence[int], shift: Sequence[int], sides: Sequence[int]) -> Tensor:
    """Invert ``cut_windows``: tokens (B, T, n) to a feature map (B, H, W, n) of the given ``sides``, without padding."""
    windows = tokens.reshape(-1, *window, tokens.shape[-1])
    x = torch.roll(window_reverse(windows, tuple(window), *padded(sides, window)), list(shift), (1, 2))
    return x[:, : sides[0], : sides[1]]
