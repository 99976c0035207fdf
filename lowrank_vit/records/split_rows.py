"""A linear layer as ``W ~ U V^T + S``, where S has some rows, each of which makes one output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowrank_vit.records.costs import Cost
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.layers import Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.serialization import storable

ROW = "row"  # a unit of a linear layer: a row of what its low-rank part leaves


@storable
@dataclass(frozen=True)
class SplitRows:
    """The low-rank part of a layer, and its outputs in the order in which S gets rows for them."""

    u: Tensor  # shape: (n, r)
    v: Tensor  # shape: (d, r)
    units: Directions  # of d outputs


def check_share(share: float) -> None:
    """Raise ``InputError`` unless the low-rank part may have a share of the layer's parameters, in (0, 1)."""
    if not 0 < share < 1:
        raise InputError(f"share={share}: a low-rank part has a share of the layer's parameters between 0 and 1")


def split_rank(site: Site, share: float) -> int:
    """Return the rank, at least 1, whose factors have ``share`` of the weight's parameters, rounded up.

    >>> split_rank(Site("fc1", 192, 768, bias=True), 0.05)
    8
    """
    return math.ceil(share * site.parameters / (site.in_features + site.out_features) * (1 - 1e-12))


def split_costs(site: Site, rank: int, tokens: int = 0) -> tuple[Cost, Cost, Cost]:
    """Return what a row of S costs, what the low-rank part does, and what the dense weight does."""
    low_rank = rank * (site.in_features + site.out_features)
    counts = (site.in_features, low_rank, site.parameters)
    row, fixed, dense = (Cost(count, tokens * count) for count in counts)
    return row, fixed, dense
