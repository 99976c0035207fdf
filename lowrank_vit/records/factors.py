"""What a decomposition finds: directions of a layer or of a head's logits, inputs and inner parts of a module in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.tensors import storable


@storable
@dataclass(frozen=True)
class Factors:
    """Hold all directions of a decomposition ``W ~ U V^T``, most important first: rank r keeps the first r columns."""

    u: Tensor  # shape: (n, k)
    v: Tensor  # shape: (d, k)
    loss: Tensor  # shape: (k + 1,); what the decomposition's own objective loses at rank 0 ... k
    ridge: float = 0.0  # relative to the mean eigenvalue of the statistic that needed it
    cap: int | None = None  # the rank above which no direction helps, where the statistics cap it

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return ``U, V`` of the first ``rank`` directions, the same in memory however many follow."""
        return self.u[:, :rank].contiguous(), self.v[:, :rank].contiguous()


@storable
@dataclass(frozen=True)
class Directions:
    """Hold the parts of one unit of a module that can be kept one by one: heads' directions, or hidden units.

    ``order`` has the most important first; ``loss[r]`` is the predicted increase of the loss, in nats per image, with
    the first r kept; of a method that scores units one by one, the largest score that is left out.
    """

    order: Tensor  # shape: (k,), indices
    loss: Tensor  # shape: (k + 1,)
    multiple: int = 1  # how many are kept or left out together, such as one for each head

    def kept(self, count: int | None, among: Tensor | None = None) -> Tensor:
        """Return the indices of the first ``count``, ``None``: all, in ascending order; ``among``: (k,), which may be."""
        order = self.order if among is None else self.order[among[self.order]]
        return order[:count].sort().values

    def curve(self, name: str, costs: UnitCosts, multiple: int, pivoted: bool = False) -> ErrorCurve:
        """Return the error curve that an allocator chooses from; ``pivoted``: identities in pairs of factors are free."""
        step = math.lcm(self.multiple, multiple)
        saved = () if costs.head_width is None or not pivoted else self._identities(costs.head_width)
        return ErrorCurve(name, self.loss.cpu(), costs.unit, costs.dense, costs.fixed, step, saved=saved)

    @classmethod
    def by_score(cls, scores: Tensor) -> Directions:
        """Order units by their scores, (k,), the largest first; what is lost is the largest score that is left out."""
        largest, order = scores.sort(descending=True, stable=True)
        return cls(order, torch.cat([largest, largest.new_zeros(1)]))

    @classmethod
    def by_share(cls, scores: Tensor) -> Directions:
        """Order units by their scores, (k,), the largest first; what is lost is the share of all scores left out."""
        largest, order = scores.sort(descending=True, stable=True)
        total = largest.sum().clamp_min(torch.finfo(largest.dtype).tiny)
        left_out = torch.cat([(largest / total).flip(0).cumsum(0).flip(0), largest.new_zeros(1)])
        return cls(order, left_out)

    def _identities(self, head_width: int) -> tuple[int, ...]:
        """Count the entries of the heads' identities, r x r for r directions of a head, with 0, 1, ... kept."""
        kept, totals = [0] * (len(self.order) // head_width), [0]
        for direction in self.order.tolist():
            head = direction // head_width
            totals.append(totals[-1] + 2 * kept[head] + 1)
            kept[head] += 1
        return tuple(totals)


@storable
@dataclass(frozen=True)
class InputSubset:
    """Hold a linear map of inputs, or of directions of them, and all that is needed to refit it on some of them."""

    units: Directions
    basis: Tensor | None  # shape: (h, s, s), a head's dimensions to its directions; None: the inputs themselves
    covariance: Tensor  # shape: (k, k), of the directions, damped
    mean: Tensor  # shape: (n,), of the inputs
    weight: Tensor  # shape: (k, d), from the directions
    ridge: float  # in the covariance, relative to the mean second moment of the inputs

    @classmethod
    def pruned(cls, units: Directions, weight: Tensor, mean: Tensor | None = None) -> InputSubset:
        """Make the subset of a method that removes inputs and refits nothing.

        ``mean``, (k,): that of the inputs, where the output's bias takes up what the removed ones add on average.
        """
        same = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return cls(units, None, same, weight.new_zeros(len(weight)) if mean is None else mean, weight, 0.0)


@storable
@dataclass(frozen=True)
class Logits:
    """Hold the directions in which queries and keys are compared.

    ``moments``: where some of a head's own dimensions are kept and refitted, (h, s, s) each, the second moment of its
    queries and the covariance of its keys, with their ridge.
    """

    units: Directions
    query: Tensor  # shape: (h, s, s), a head's dimensions to its directions; of a pooling: its queries, (h, L, r)
    key: Tensor  # shape: (h, s, s); of a pooling: (h, s, r)
    moments: tuple[Tensor, Tensor] | None = None

    @classmethod
    def whole(cls, heads: int, width: int, like: Tensor) -> Logits:
        """Return the dimensions as they are; ``like``: a tensor of the type and on the device to use."""
        same = torch.eye(width, dtype=like.dtype, device=like.device).expand(heads, -1, -1)
        order = torch.arange(heads * width, device=like.device)
        return cls(Directions(order, like.new_zeros(heads * width + 1)), same, same)

    def pair(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transforms of queries and keys, (h, s, s) each, whose columns ``kept`` compare best.

        With moments Q and K and the dimensions S of a head, queries and keys are predicted from those in S, so that
        ``q^T k`` becomes ``q_S^T (Q_SS^-1 Q_S: K_:S K_SS^-1) k_S``; the queries take up the matrix.
        """
        if self.moments is None:
            return self.query, self.key
        query, width = torch.zeros_like(self.query), self.query.shape[-1]
        for head, (queries, keys) in enumerate(zip(*self.moments, strict=True)):
            own = kept[kept // width == head] % width
            left = torch.linalg.solve(queries[own][:, own], queries[own])
            right = torch.linalg.solve(keys[own][:, own], keys[own])
            query[head][own[:, None], own] = left @ right.T
        return query, self.key


@storable
@dataclass(frozen=True)
class WholeHeads:
    """Hold the heads of an attention module, each kept or left out as a whole.

    ``mean``, (h s,): that of the output layer's inputs, where its bias takes up what the removed heads add on average.
    """

    units: Directions
    mean: Tensor | None = None


def input_reader(site: AttentionSite | MlpSite) -> Site | None:
    """Return the only layer that reads a module's input, so that inputs can be removed.

    None where several layers do, and of attention whose queries and keys stay as they are.
    """
    if len(site.readers) > 1:
        return None
    if isinstance(site, AttentionSite):
        return None if site.dense_logits else site.qkv
    return site.inputs[0]


@storable
@dataclass(frozen=True)
class PartsInOrder:
    """Hold a module's inner parts (heads, dimensions of values, or hidden units) and others, the most important first.

    The others are the module's inputs or its outputs. The best of either kind come foremost. Rank r keeps the first
    ``r + 1``, so that from rank 1 on there is one of either; without others it keeps the first r, which are inner parts.
    """

    units: Directions  # ranks alone: ``order`` counts them
    inner: Tensor  # shape: (k,), bool: whether the part is an inner one
    index: Tensor  # shape: (k,), among its kind
    mean: Tensor  # shape: (h,), of the output layer's inputs
    input_mean: Tensor | None = None  # shape: (n,), of the module's inputs; None where these are not among the parts

    @classmethod
    def by_score(
        cls, inner: Tensor, others: Tensor | None, mean: Tensor, input_mean: Tensor | None = None
    ) -> PartsInOrder:
        """Order inner parts and others by their scores, (h,) and (n,); what is lost is the largest score left out."""
        kinds = [inner] if others is None else [inner, others.to(inner)]
        scores = torch.cat(kinds)
        first = torch.cat([torch.arange(len(each)).to(each.device) == each.argmax() for each in kinds])
        order = scores.masked_fill(first, math.inf).argsort(descending=True, stable=True)
        lost = torch.cat([scores[order], scores.new_zeros(1)]).flip(0).cummax(0).values.flip(0)
        lost = lost[len(kinds) - 1 :]
        is_inner = order < len(inner)
        index = torch.where(is_inner, order, order - len(inner))
        return cls(Directions(torch.arange(len(lost) - 1).to(order), lost), is_inner, index, mean, input_mean)

    @property
    def foremost(self) -> int:
        """Return how many parts a rank keeps in addition to its number: one where there are others."""
        return len(self.inner) - len(self.units.order)

    def counts(self) -> tuple[Tensor, Tensor]:
        """Count the inner parts and the others that ranks 0 ... k keep, (k + 1,) each."""
        nothing = self.index.new_zeros(1)
        inner = torch.cat([nothing, self.inner.long().cumsum(0)])
        others = torch.arange(len(inner)).to(inner) - inner
        return inner[self.foremost :], others[self.foremost :]

    def kept(self, rank: int | None) -> tuple[Tensor, Tensor | None]:
        """Return the indices of inner parts and of others that a rank keeps, each ascending; ``None``: all.

        Where there are no others, there are no indices of them.
        """
        count = None if rank is None else rank + self.foremost
        inner, index = self.inner[:count], self.index[:count]
        return index[inner].sort().values, index[~inner].sort().values if self.foremost else None


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
        return self.layer.name

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.layer,)

    @property
    def rank(self) -> int:
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
