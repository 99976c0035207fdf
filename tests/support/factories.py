"""A model that timm does not make, and a function that makes it."""

import torch
from torch import Tensor, nn

NAME = f"{__name__}:mixer"


class Mixer(nn.Module):
    """Patches of an image, blocks of two linear layers, and a classifier."""

    def __init__(self, width: int, depth: int, classes: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, H, W) to logits."""
        x = self.embed(x).flatten(2).mT
        for block in self.blocks:
            x = x + self.slope * block(x)
        return self.head(x.mean(1))


def mixer(width: int = 16, depth: int = 2, classes: int = 10, slope: float = 1.0) -> Mixer:
    """The model with random weights."""
    torch.manual_seed(0)
    return Mixer(width, depth, classes, slope).eval()
