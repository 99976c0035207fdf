"""One attention module and one MLP with random statistics."""

import torch
from torch import Tensor

from lowrank_vit.records.sites import AttentionSite, MlpSite, Site

HEADS, WIDTH, N = 3, 4, 14
INNER = HEADS * WIDTH
ATTENTION = AttentionSite(
    "attn", Site("attn.qkv", N, 3 * INNER, True, HEADS), Site("attn.proj", INNER, N, True), WIDTH, None
)
MLP = MlpSite("mlp", (Site("mlp.fc1", N, INNER, True),), Site("mlp.fc2", INNER, N, True))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed random numbers of the default precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
