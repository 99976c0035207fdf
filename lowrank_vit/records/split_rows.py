"""A linear layer as ``W ~ U V^T + S``, where S has some rows, each of which makes one output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowrank_vit.records.costs import Cost
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.serialization import storable


@storable
@dataclass(frozen=True)
class SplitRows:
    """Hold the low-rank part of a layer, and its outputs in the order in which S gets rows for them."""

    u: Tensor  # shape: (n, r)
    v: Tensor  # shape: (d, r)
    units: Directions  # of d outputs


def check_share(share: float) -> None:
    """Raise ``InputError`` unless the low-rank part may have a share of the layer's parameters, in (0, 1)."""
    if not 0 < share < 1:
        raise InputError(f"share={share}: a low-rank part has a share of the layer's parameters between 0 and 1")


def split_rank(n: int, d: int, share: float) -> int:
    """Return the rank, at least 1, whose factors have ``share`` of the parameters of a weight (n, d), rounded up.

    >>> split_rank(192, 768, 0.05)
    8
    """
    return math.ceil(share * n * d / (n + d) * (1 - 1e-12))


@dataclass(frozen=True)
class SplitSite:
    """Describe a linear layer, and the share of its parameters that its low-rank part has."""

    layer: Site
    share: float

    @property
    def name(self) -> str:
        """Return the layer's name."""
        return self.layer.name

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layer."""
        return (self.layer,)

    @property
    def rank(self) -> int:
        """Return the rank of the low-rank part."""
        return split_rank(self.layer.in_features, self.layer.out_features, self.share)

    def costs(self, tokens: int = 0) -> tuple[Cost, Cost, Cost]:
        """Return the costs of a row of S, of the low-rank part, and of the dense weight."""
        n, d = self.layer.in_features, self.layer.out_features
        row, fixed, dense = (Cost(count, tokens * count) for count in (n, self.rank * (n + d), n * d))
        return row, fixed, dense

    def cost(self, rows: int, tokens: int = 0) -> Cost:
        """Return the cost of the layer with some rows, at least one; where that saves nothing, it stays dense."""
        row, fixed, dense = self.costs(tokens)
        split = fixed + row * max(1, rows)
        return split if split.parameters < dense.parameters else dense
