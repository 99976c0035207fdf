"""Embeddings whose rank can be chosen: that of patches as a linear layer, that of positions as two factors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank_vit.linalg.pairs import balance
from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.surgery import output_layer
from lowrank_vit.records.moments import as_float64


@REPLACEMENTS.register("patches")
class Patches(Replacement):
    """Compute a convolution whose stride is its kernel: each patch, as (C kh kw,), goes through one linear layer."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, list(kernel_size)
        self.config = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": self.kernel_size}
        height, width = kernel_size
        self.linear = nn.Linear(in_channels * height * width, out_channels)

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> "Patches":
        """Make the same function as a convolution that ``is_plain``, with its weights."""
        patches = cls(convolution.in_channels, convolution.out_channels, convolution.kernel_size)
        patches.linear.weight = nn.Parameter(convolution.weight.detach().flatten(1).clone())
        bias = convolution.bias
        patches.linear.bias = nn.Parameter(
            patches.linear.weight.new_zeros(convolution.out_channels) if bias is None else bias.detach().clone()
        )
        return patches.train(convolution.training).requires_grad_(convolution.weight.requires_grad)

    @property
    def weight(self) -> Tensor:
        """Return the weight that makes the outputs, for models that ask for its type and device."""
        return output_layer(self.linear).weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, d, H / kh, W / kw); pixels beyond the last whole patch are left out."""
        height, width = self.kernel_size
        rows, columns = x.shape[-2] // height, x.shape[-1] // width
        x = x[..., : rows * height, : columns * width]
        patches = x.reshape(x.shape[0], self.in_channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return self.linear(patches.flatten(3)).permute(0, 3, 1, 2)


def is_plain(module: object) -> bool:
    """Tell whether a module is a convolution that sees patch by patch: nothing overlaps, is padded, or left out between."""
    return (
        type(module) is nn.Conv2d
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


@REPLACEMENTS.register("positions")
class Positions(Replacement):
    """Hold a table ``R C``, (1, T, n), of a vector for each position; R: (T, rank), C: (rank, n), or R alone, (T, n).

    It stands where a model has a parameter, so torch's functions take it as the tensor that it makes.
    """

    def __init__(self, tokens: int, width: int, rank: int | None = None) -> None:
        super().__init__()
        self.config = {"tokens": tokens, "width": width, "rank": rank}
        self.rows = nn.Parameter(torch.zeros(tokens, width if rank is None else rank))
        self.columns = None if rank is None else nn.Parameter(torch.zeros(rank, width))

    @classmethod
    def of(cls, table: Tensor) -> "Positions":
        """Make the same table, (1, T, n), without factors."""
        positions = cls(table.shape[1], table.shape[2])
        positions.rows = nn.Parameter(table.detach()[0].clone(), table.requires_grad)
        return positions

    @classmethod
    def product(cls, u: Tensor, v: Tensor, like: Tensor) -> "Positions":
        """Make ``U V^T`` of balanced factors, u: (T, r), v: (n, r), in the type and on the device of ``like``."""
        u, v = balance(as_float64(u), as_float64(v))
        positions = cls(len(u), len(v), u.shape[1])
        positions.rows = nn.Parameter(u.contiguous().to(like))
        positions.columns = nn.Parameter(v.T.contiguous().to(like))
        return positions

    def forward(self) -> Tensor:
        return (self.rows if self.columns is None else self.rows @ self.columns)[None]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with the table in place of this module."""
        tables = tree_map(lambda value: value() if isinstance(value, Positions) else value, (args, kwargs or {}))
        return function(*tables[0], **tables[1])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((1, self.config["tokens"], self.config["width"]))
