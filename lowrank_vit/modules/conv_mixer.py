"""A convolution down to a head's width and back, or nothing, in the place of attention (SPViT, He et al. 2024)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement

KERNELS = (0, 1, 3)  # of the mixers; 0: none
SHARPNESS = 0.01  # the temperature at which heads are mixed


def grid(patches: Tensor) -> Tensor:
    """Lay patches, (B, T, n), out on their square, (B, n, h, w). Raises ``ValueError`` where they make none."""
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} patches make no square")
    return patches.transpose(1, 2).unflatten(2, (side, side))


def shared_weights(
    values: Tensor, biases: Tensor, outputs: Tensor, mixture: Tensor, kernel: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of a mixer that shares those of attention: down, (s, n, k, k), its bias, (s,), and up, (n, s).

    values: (h, s, n); biases: (h, s); outputs: (n, h, s); mixture: (h, 9), whose softmax over the heads weights them at each
    of the nine positions. A kernel of 1 takes the position in the middle; one of 3 sums biases, and ways up, over all.
    """
    weights = (mixture / SHARPNESS).softmax(0).to(values)
    weights = weights[:, 4:5] if kernel == 1 else weights
    down = torch.einsum("hp,hsn->snp", weights, values).unflatten(2, (kernel, kernel))
    whole = weights.sum(1)
    return down, whole @ biases, torch.einsum("h,nhs->ns", whole, outputs)


@REPLACEMENTS.register("mixer")
class ConvMixer(Replacement):
    """Compute ``up(relu(down(x)))`` of the patches for a ``kernel`` of 1 or 3; a kernel of 0 leaves them as they are.

    The class token always stays as it is. ``width``: n of the stream; ``inner``: that of a head. Raises ``ValueError`` for
    another kernel, and widths below 1.
    """

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        if kernel not in KERNELS or width < 1 or inner < 1:
            raise ValueError(f"a mixer of width {width} and inner {inner} has no kernel of {kernel}: it is 0, 1 or 3")
        self.config = {"width": width, "inner": inner, "kernel": kernel}
        if kernel:
            self.down = nn.Conv2d(width, inner, kernel, padding=kernel // 2)
            self.up = nn.Conv2d(inner, width, 1)

    @classmethod
    @torch.no_grad()
    def of(cls, down: Tensor, bias: Tensor, up: Tensor, up_bias: Tensor) -> "ConvMixer":
        """Make a mixer from its weights, as ``shared_weights`` returns them, and the bias of the way up, (n,)."""
        made = cls(down.shape[1], down.shape[0], down.shape[2]).to(down)
        made.down.weight.copy_(down)
        made.down.bias.copy_(bias)  # type: ignore[union-attr]
        made.up.weight.copy_(up[..., None, None])
        made.up.bias.copy_(up_bias)  # type: ignore[union-attr]
        return made

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map x: (B, 1 + T, n), the class token first, to (B, 1 + T, n); T is a square."""
        if not self.config["kernel"]:
            return x
        mixed = self.up(F.relu(self.down(grid(x[:, 1:]))))
        return torch.cat([x[:, :1], mixed.flatten(2).transpose(1, 2)], 1)


def mixer_cost(width: int, inner: int, kernel: int, patches: int) -> tuple[int, int]:
    """Return the parameters of a mixer, and its multiply-accumulates for so many patches.

    >>> mixer_cost(192, 64, 3, 196)[0], mixer_cost(192, 64, 0, 196)
    (123136, (0, 0))
    """
    if not kernel:
        return 0, 0
    weights = (kernel * kernel + 1) * width * inner
    return weights + inner + width, patches * weights
