"""The position embedding as a product of two factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank_vit.linalg.balance import balance
from lowrank_vit.modules import REPLACEMENTS
from lowrank_vit.records.moments import as_float64


@REPLACEMENTS.register("positions")
class Positions(nn.Module):
    """Hold a table ``R C``, (1, T, n), of a vector for each position; R: (T, rank), C: (rank, n), or R alone, (T, n).

    It stands where a model has a parameter, so torch's functions take it as the tensor that it makes.
    """

    def __init__(self, tokens: int, width: int, rank: int | None = None) -> None:
        super().__init__()
        self.tokens, self.width, self.rank = tokens, width, rank
        self.rows = nn.Parameter(torch.zeros(tokens, width if rank is None else rank))
        self.columns = None if rank is None else nn.Parameter(torch.zeros(rank, width))

    @classmethod
    def of(cls, table: Tensor) -> Positions:
        """Make the same table, (1, T, n), without factors."""
        positions = cls(table.shape[1], table.shape[2])
        positions.rows = nn.Parameter(table.detach()[0].clone())
        return positions

    @classmethod
    def product(cls, u: Tensor, v: Tensor, like: Tensor) -> Positions:
        """Make ``U V^T`` of balanced factors, u: (T, r), v: (n, r), in the type and on the device of ``like``."""
        u, v = balance(as_float64(u), as_float64(v))
        positions = cls(len(u), len(v), u.shape[1])
        positions.rows = nn.Parameter(u.contiguous().to(like))
        positions.columns = nn.Parameter(v.T.contiguous().to(like))
        return positions

    def forward(self) -> Tensor:
        """Return the table, (1, T, n)."""
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
        """Return the table's shape."""
        return torch.Size((1, self.tokens, self.width))

    @property
    def config(self) -> dict[str, Any]:
        """Return the shape, and the rank."""
        return {"tokens": self.tokens, "width": self.width, "rank": self.rank}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: object) -> Positions:
        """Make a table of this shape."""
        return cls(**config)
