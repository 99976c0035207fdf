"""Pairs of thin products in one launch of a GPU: for single images, where launches take longer than arithmetic.

``LowRankLinear`` multiplies twice. On a GPU, with the tokens of one image, both products together take less time than
their launches. The kernel repeats the first product for every 64 outputs, so many rows are left to two products.
"""

from __future__ import annotations

import copy
import os

import torch
from torch import Tensor, nn

from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import installed

MOST_RANK = 256  # a tile's rows of the thin product must fit into registers
MOST_ROWS = 512  # of x: two images of 197 tokens
TYPES = (torch.bfloat16, torch.float16)  # what tensor cores multiply without a loss


class FusedPair(LowRankLinear):
    """Compute both products of a ``LowRankLinear`` in one kernel: on a GPU, in 16 bits, for few rows, without gradients.

    In all other cases they are two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x: (..., n) to (..., d)."""
        rows = x.numel() // self.in_features
        if not self._fused(x, rows):
            return super().forward(x)
        from lowrank_vit.stages.export.pair_kernel import pair

        y = pair(x.reshape(rows, self.in_features), self.down.weight, self.up.weight, self.up.bias)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.correction is None else y + self.correction(x)

    def _fused(self, x: Tensor, rows: int) -> bool:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU, slowly
        learning = torch.is_grad_enabled() and (x.requires_grad or self.up.weight.requires_grad)
        typed = x.dtype == self.up.weight.dtype and x.dtype in TYPES
        return (x.is_cuda or interpreted) and typed and not learning and 0 < rows <= MOST_ROWS


def fuse_pairs(model: nn.Module) -> nn.Module:
    """Return a copy whose pairs of thin products take one launch each on a GPU, in bfloat16 or float16.

    Up to rounding the function stays the same. Taken are layers of two plain factors of rank 256 at most, such as those of
    ``exact``; heads and hidden units, which ``best`` cuts, are single products. Ranks in multiples of 16 suit the kernel:
    ``get_recipe("exact").but(rank_multiple=16)``. The copy is for running: save the model that it was made from.
    Raises ``InputError`` where Triton is not installed, and for a model without such a pair.
    """
    if not installed("triton"):
        raise InputError(
            "fused pairs need Triton, which comes with torch's CUDA builds for Linux: install one of these"
        )
    fused, count = copy.deepcopy(model), 0
    for name, layer in list(fused.named_modules()):
        if type(layer) is LowRankLinear and isinstance(layer.down, nn.Linear) and layer.rank <= MOST_RANK:
            replace_module(fused, name, _fused(layer))
            count += 1
    if not count:
        raise InputError(
            f"no layer is a pair of thin products of rank {MOST_RANK} at most, so there is nothing to fuse: "
            "recipes for single layers, such as `exact`, make such pairs"
        )
    return fused


def _fused(layer: LowRankLinear) -> FusedPair:
    """Make a fused pair that takes over the factors of a layer."""
    with torch.device("meta"):
        fused = FusedPair(layer.in_features, layer.out_features, layer.rank, layer.up.bias is not None)
    fused.down, fused.up, fused.correction = layer.down, layer.up, layer.correction
    return fused.train(layer.training)
