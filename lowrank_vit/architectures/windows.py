"""Feature maps cut into windows, padded before they are shifted: as torchvision's and Hugging Face's Swin see them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor


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
