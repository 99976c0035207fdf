"""Affine least-squares fits from sums over rows, with the ridge that predicts unseen rows best."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank_vit.linalg.metric import about_mean, cholesky_root, gram, weighted_sum
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.runtime.tensors import Spill


@dataclass
class Regression:
    """Hold the sums for the affine least-squares fit of e: (d,) on h: (k,), rows weighted.

    Products are in float32, sums in float64. Without a ``bias`` the fit is linear: the sums of h and e stay zero, as if the
    means were.
    """

    sums: dict[str, Tensor]
    bias: bool = True

    @classmethod
    def empty(cls, k: int, d: int, device: torch.device | str = "cpu", *, bias: bool = True) -> Regression:
        """Make sums without rows."""
        shapes: dict[str, tuple[int, ...]] = {"w": (), "h": (k,), "e": (d,), "hh": (k, k), "he": (k, d)}
        sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        return cls(sums, bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Regression:
        """Make sums without rows for the inputs and outputs of a layer, on its device."""
        return cls.empty(layer.in_features, layer.out_features, layer.weight.device, bias=layer.bias is not None)

    def add(self, h: Tensor, e: Tensor, weights: Tensor) -> None:
        """Add h: (rows, k), e: (rows, d), weights: (rows,), none of them negative."""
        he = h.T @ (e * weights[:, None])
        means = {"h": weighted_sum(h, weights), "e": weighted_sum(e, weights)} if self.bias else {}
        for name, value in {**means, "w": weights.sum(), "hh": gram(h, weights), "he": he}.items():
            self.sums[name] += value

    def gather(self) -> None:
        """Sum over the processes, where there are several."""
        if rank_and_world()[1] > 1:
            for total in self.sums.values():
                dist.all_reduce(total)

    def plus(self, other: Regression, sign: int = 1) -> Regression:
        """Add the rows of ``other``, or remove them with ``sign`` -1."""
        return Regression({name: total + sign * other.sums[name] for name, total in self.sums.items()}, self.bias)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return ``W, b`` that minimise ``E||e - h W - b||^2 + ridge s ||W||^2``, s: the mean of E[h h^T]'s diagonal."""
        h, e, hh, he = (self.sums[name] / self.sums["w"].clamp_min(1e-30) for name in ("h", "e", "hh", "he"))
        scale = hh.diagonal().mean().clamp_min(1e-30)
        root, _ = cholesky_root(about_mean(hh, h), ridge, scale)
        weight = torch.cholesky_solve(he - torch.outer(h, e), root)
        return weight, e - h @ weight

    def nothing(self) -> tuple[Tensor, Tensor]:
        """Return a ``W, b`` that change nothing: zeros."""
        return torch.zeros_like(self.sums["he"]), torch.zeros_like(self.sums["e"])

    def gain(self, weight: Tensor, bias: Tensor) -> float:
        """Compute by how much ``h W + b`` lowers these rows' squared error: ``sum w ||e||^2 - sum w ||e - h W - b||^2``."""
        w, h, e, hh, he = (self.sums[name] for name in ("w", "h", "e", "hh", "he"))
        explained = 2 * (weight * he).sum() + 2 * bias @ e
        return float(explained - (weight * (hh @ weight)).sum() - 2 * (h @ weight) @ bias - w * bias @ bias)


class Folds:
    """Add up the rows of groups of images apart, so that each group can be predicted from the others."""

    def __init__(self, layer: nn.Linear, count: int) -> None:
        self.groups = [Regression.of(layer) for _ in range(count)]
        self._seen, self._world = rank_and_world()

    def add(self, h: Tensor, e: Tensor, weights: Tensor) -> None:
        """Add images in their order: h: (B, T, k), e: (B, T, d), weights: (B, T)."""
        # images alternate between processes: an image's index over all of them decides its fold
        own = (torch.arange(len(h), device=h.device) * self._world + self._seen) % len(self.groups)
        for index, group in enumerate(self.groups):
            group.add(*(t[own == index].flatten(0, 1).float() for t in (h, e, weights)))
        self._seen += len(h) * self._world

    def fit(self, ridges: Sequence[float]) -> tuple[Tensor, Tensor, float | None]:
        """Return the fit to the images of all processes, ``cross_validated``, and its ridge."""
        for group in self.groups:
            group.gather()
        return cross_validated(self.groups, ridges)


def add_affine(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Add W: (k, d) and b: (d,) to a layer's weight and, where it has one, its bias, in place."""
    layer.weight.data = (as_float64(layer.weight) + weight.T).to(layer.weight)
    if layer.bias is not None:
        layer.bias.data = (as_float64(layer.bias) + bias).to(layer.bias)


def cross_validated(folds: Sequence[Regression], ridges: Sequence[float]) -> tuple[Tensor, Tensor, float | None]:
    """Fit all folds with the ridge that is best on rows it was not fitted on; return the fit and that ridge.

    Every fold is predicted from the others. Where no ridge lowers the error there, or all rows are in one fold (of a
    single image), nothing is fitted: zeros and ``None``.
    """
    folds = [fold for fold in folds if fold.sums["w"] > 0] or folds[:1]
    whole = folds[0]
    if len(folds) == 1:
        return *whole.nothing(), None
    for fold in folds[1:]:
        whole = whole.plus(fold)
    rests = [whole.plus(fold, -1) for fold in folds]
    gains = {
        ridge: sum(fold.gain(*rest.solve(ridge)) for fold, rest in zip(folds, rests, strict=True)) for ridge in ridges
    }
    best = max(gains, key=gains.__getitem__)
    if gains[best] > 0:
        return *whole.solve(best), best
    return *whole.nothing(), None


class Streams:
    """Keep the streams of both models on disk, batch by batch, (B, ..., n), until the ``with`` block ends."""

    def __init__(self) -> None:
        self.dense, self.small = Spill(), Spill()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            opened.enter_context(self.dense)
            opened.enter_context(self.small)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        return len(self.dense)

    def at(self, place: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return both streams of one batch."""
        return self.dense[place].to(device), self.small[place].to(device)

    def put(self, place: int, dense: Tensor, small: Tensor) -> None:
        """Set both streams of one batch."""
        self.dense[place], self.small[place] = dense, small

    def copy_to(self, other: Streams) -> Streams:
        """Copy both streams to ``other``, and return it."""
        for place, pair in enumerate(zip(self.dense, self.small, strict=True)):
            other.put(place, *pair)
        return other
