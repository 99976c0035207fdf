"""A patch embedding as a linear layer over patches, whose rank can then be chosen as any other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.modules.surgery import output_layer


@REPLACEMENTS.register("patches")
class Patches(nn.Module):
    """Compute a convolution whose stride is its kernel: each patch, as (C kh kw,), goes through one linear layer."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, list(kernel_size)
        height, width = kernel_size
        self.linear = nn.Linear(in_channels * height * width, out_channels)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Patches:
        """Make the same function as a convolution that ``is_plain``, with its weights."""
        patches = cls(convolution.in_channels, convolution.out_channels, convolution.kernel_size)
        patches.linear.weight = nn.Parameter(convolution.weight.detach().flatten(1).clone())
        bias = convolution.bias
        patches.linear.bias = nn.Parameter(
            patches.linear.weight.new_zeros(convolution.out_channels) if bias is None else bias.detach().clone()
        )
        return patches.train(convolution.training)

    @property
    def weight(self) -> Tensor:
        """Return the weight that makes the outputs, for models that ask for its type and device."""
        weight: Tensor = output_layer(self.linear).weight  # type: ignore[assignment]
        return weight

    @property
    def config(self) -> dict[str, Any]:
        """Return the shape."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
        }

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> Patches:
        """Make a patch embedding of this shape."""
        return cls(**config)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, d, H / kh, W / kw); pixels beyond the last whole patch are left out."""
        height, width = self.kernel_size
        rows, columns = x.shape[-2] // height, x.shape[-1] // width
        x = x[..., : rows * height, : columns * width]
        patches = x.reshape(x.shape[0], self.in_channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        y: Tensor = self.linear(patches.flatten(3)).permute(0, 3, 1, 2)
        return y


def is_plain(module: object) -> bool:
    """Tell whether a module is a convolution that sees patch by patch: nothing overlaps, is padded, or left out between."""
    return (
        type(module) is nn.Conv2d
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )
