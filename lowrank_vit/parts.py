"""The plain records of a block's halves: what an attention module or an MLP consists of, and what of it can be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lowrank_vit.records import ErrorCurve, Site

QUERY_KEY, VALUE, HIDDEN = "query_key", "value", "hidden"  # the parts of a half


@dataclass(frozen=True)
class Costs:
    """Parameters of one part of a module: ``count`` directions or units of ``unit`` each, ``fixed`` beside them."""

    count: int
    unit: int
    fixed: int
    dense: int  # of the part as it was


@dataclass(frozen=True)
class AttentionSite:
    """A whole attention module: its queries, keys and values by one linear layer, its output by another."""

    name: str
    qkv: Site
    proj: Site
    head_width: int
    window_size: tuple[int, int] | None  # of a Swin block

    @property
    def linears(self) -> tuple[Site, ...]:
        """Where statistics are collected; the last one makes the output."""
        return (self.qkv, self.proj)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.qkv.in_features

    @property
    def parts(self) -> Mapping[str, Costs]:
        """Queries with keys: a row of either and the query's bias for each direction; keys need none.

        Values with the output: a row and a column for each direction, and the output's bias.
        """
        n, d, width = self.qkv.in_features, self.proj.out_features, self.proj.in_features
        dense_value = width * (n + self.qkv.bias + d) + d * self.proj.bias
        return {
            QUERY_KEY: Costs(width, 2 * n + 1, 0, 2 * width * (n + self.qkv.bias)),
            VALUE: Costs(width, n + d, d, dense_value),
        }


@dataclass(frozen=True)
class MlpSite:
    """A whole MLP: two linear layers with an activation function between them."""

    name: str
    fc1: Site
    fc2: Site

    @property
    def linears(self) -> tuple[Site, ...]:
        """Where statistics are collected; the last one makes the output."""
        return (self.fc2,)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.fc1.in_features

    @property
    def parts(self) -> Mapping[str, Costs]:
        """Hidden units: a row, a bias and a column each, and the output's bias."""
        n, h, d = self.fc1.in_features, self.fc1.out_features, self.fc2.out_features
        unit = n + self.fc1.bias + d
        return {HIDDEN: Costs(h, unit, d, h * unit + d * self.fc2.bias)}


HalfSite = AttentionSite | MlpSite


def part_name(site: HalfSite, part: str) -> str:
    """The name of a part in a plan."""
    return f"{site.name}.{part}"


def last_part(site: HalfSite) -> str:
    """The part that the output is made from."""
    return VALUE if isinstance(site, AttentionSite) else HIDDEN


@dataclass(frozen=True)
class Directions:
    """What can be kept of one part of a module, one by one: heads' directions, or hidden units.

    ``order`` has the most important first; ``loss[r]`` is the predicted increase of the loss, in nats for an image, with
    the first r kept.
    """

    order: Tensor  # shape: (k,), indices
    loss: Tensor  # shape: (k + 1,)
    multiple: int = 1  # are kept or left together, as one for each head

    def kept(self, count: int | None) -> Tensor:
        """The indices of the first ``count``, ``None``: all, in their own order."""
        return self.order[:count].sort().values

    def curve(self, name: str, costs: Costs, multiple: int) -> ErrorCurve:
        """What an allocator chooses from."""
        step = math.lcm(self.multiple, multiple)
        return ErrorCurve(name, self.loss.cpu(), costs.unit, costs.dense, costs.fixed, step)


@dataclass(frozen=True)
class Part:
    """A linear map after directions or units of which some are kept: all that is needed to refit it on any of them."""

    units: Directions
    basis: Tensor | None  # shape: (h, s, s), a head's dimensions to its directions; None: the layer's inputs themselves
    covariance: Tensor  # shape: (k, k), of the units, damped
    mean: Tensor  # shape: (n,), of the layer's inputs
    weight: Tensor  # shape: (k, d), from the units
    ridge: float  # in the covariance, relative to the mean second moment of the layer's inputs


@dataclass(frozen=True)
class Logits:
    """The directions in which queries and keys are compared."""

    units: Directions
    query: Tensor  # shape: (h, s, s), a head's dimensions to its directions
    key: Tensor  # shape: (h, s, s)


@dataclass(frozen=True)
class Kept:
    """What a smaller half keeps of the inputs that the dense output layer sees: ``(x - offset) columns``."""

    columns: Tensor  # shape: (n, s)
    offset: Tensor  # shape: (n,), the values' bias, which the smaller attention does not add
