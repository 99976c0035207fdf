"""The plain records of a block's halves: what an attention module or an MLP consists of, and what of it can be kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowrank_vit.records import ErrorCurve, Site


@dataclass(frozen=True)
class Costs:
    """Parameters of one part of a module: of each direction or unit that is kept, beside them (a bias), and when dense."""

    unit: int
    fixed: int
    dense: int


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
        """Where statistics are collected."""
        return (self.qkv, self.proj)

    @property
    def logits(self) -> Costs:
        """Of queries and keys, each direction of a head: a row of either and the query's bias; keys need none."""
        n, width = self.qkv.in_features, self.proj.in_features
        return Costs(2 * n + 1, 0, 2 * width * (n + self.qkv.bias))

    @property
    def values(self) -> Costs:
        """Of values and the output layer, each direction of a head."""
        n, d, width = self.qkv.in_features, self.proj.out_features, self.proj.in_features
        return Costs(n + d, d, width * (n + self.qkv.bias + d) + d * self.proj.bias)


@dataclass(frozen=True)
class MlpSite:
    """A whole MLP: two linear layers with an activation function between them."""

    name: str
    fc1: Site
    fc2: Site

    @property
    def linears(self) -> tuple[Site, ...]:
        """Where statistics are collected."""
        return (self.fc2,)

    @property
    def units(self) -> Costs:
        """Of the hidden units."""
        n, h, d = self.fc1.in_features, self.fc1.out_features, self.fc2.out_features
        unit = n + self.fc1.bias + d
        return Costs(unit, d, h * unit + d * self.fc2.bias)


@dataclass(frozen=True)
class Directions:
    """What can be kept of one part of a module, one by one: heads' directions, or hidden units.

    ``order`` has the most important first; ``loss[r]`` is the predicted increase of the loss, in nats for an image, with
    the first r kept.
    """

    order: Tensor  # shape: (k,), indices
    loss: Tensor  # shape: (k + 1,)
    costs: Costs
    multiple: int = 1  # are kept or left together, as one for each head

    def kept(self, count: int | None) -> Tensor:
        """The indices of the first ``count``, ``None``: all, in their own order."""
        return self.order[:count].sort().values

    def curve(self, name: str, multiple: int) -> ErrorCurve:
        """What an allocator chooses from."""
        step = math.lcm(self.multiple, multiple)
        return ErrorCurve(name, self.loss.cpu(), self.costs.unit, self.costs.dense, self.costs.fixed, step)


@dataclass(frozen=True)
class Part:
    """A linear map after directions or units of which some are kept: all that is needed to refit it on any of them."""

    units: Directions
    basis: Tensor | None  # shape: (h, s, s), a head's dimensions to its directions; None: the layer's inputs themselves
    covariance: Tensor  # shape: (k, k), of the units, damped
    weight: Tensor  # shape: (k, d), from the units


@dataclass(frozen=True)
class Logits:
    """The directions in which queries and keys are compared."""

    units: Directions
    query: Tensor  # shape: (h, s, s), a head's dimensions to its directions
    key: Tensor  # shape: (h, s, s)
