"""Refit of what every half writes into the residual stream, once all that comes before it is smaller.

A half is approximated for the inputs that the dense model gives it; what it gets are those of the smaller one. Half by
half, first to last, its output layer is fitted so that the stream returns to the dense model's: in closed form, without
labels, and with no parameter more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.layers import LayerScale
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lowrank_vit.errors import InputError
from lowrank_vit.gram import gram, weighted_sum
from lowrank_vit.metric import cholesky_root
from lowrank_vit.parallel import rank_and_world
from lowrank_vit.progress import track
from lowrank_vit.records import as_float64
from lowrank_vit.streams import (
    HALVES,
    OUTPUTS,
    branch,
    branch_and_inputs,
    first_inputs,
    output_layer,
    steps_of,
    stream_of,
    tokens_of,
)

Streams = list[tuple[Tensor, Tensor]]  # of the dense and of the smaller model, batch by batch, (B, ..., n)


def check_refit(model: nn.Module, batches: object) -> None:
    """Raise ``InputError``, before anything long begins, for what could not be refitted later."""
    steps_of(model)
    if isinstance(batches, Iterator):
        raise InputError("the calibration images can be gone through only once: hand in a list or a data loader")


@dataclass
class Regression:
    """Sums for the affine least-squares fit of e: (d,) on h: (k,), rows weighted; products in float32, sums in float64."""

    sums: dict[str, Tensor]

    @classmethod
    def empty(cls, k: int, d: int, device: torch.device | str = "cpu") -> Regression:
        """No rows yet."""
        shapes: dict[str, tuple[int, ...]] = {"w": (), "h": (k,), "e": (d,), "hh": (k, k), "he": (k, d)}
        return cls({name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()})

    def add(self, h: Tensor, e: Tensor, weights: Tensor) -> None:
        """h: (rows, k), e: (rows, d), weights: (rows,), none of them negative."""
        he = h.T @ (e * weights[:, None])
        firsts = {"w": weights.sum(), "h": weighted_sum(h, weights), "e": weighted_sum(e, weights)}
        for name, value in {**firsts, "hh": gram(h, weights), "he": he}.items():
            self.sums[name] += value

    def gather(self) -> None:
        """Add up over the processes, where there are several."""
        if rank_and_world()[1] > 1:
            for total in self.sums.values():
                dist.all_reduce(total)

    def plus(self, other: Regression, sign: int = 1) -> Regression:
        """The rows of both together, or those of the other taken away."""
        return Regression({name: total + sign * other.sums[name] for name, total in self.sums.items()})

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """``W, b`` that minimise ``E||e - h W - b||^2 + ridge s ||W||^2``, s: the mean of E[h h^T]'s diagonal."""
        h, e, hh, he = (self.sums[name] / self.sums["w"].clamp_min(1e-30) for name in ("h", "e", "hh", "he"))
        scale = hh.diagonal().mean().clamp_min(1e-30)
        root, _ = cholesky_root(hh - torch.outer(h, h), ridge, scale)
        weight = torch.cholesky_solve(he - torch.outer(h, e), root)
        return weight, e - h @ weight

    def nothing(self) -> tuple[Tensor, Tensor]:
        """The ``W, b`` that change nothing: zeros."""
        return torch.zeros_like(self.sums["he"]), torch.zeros_like(self.sums["e"])

    def gain(self, weight: Tensor, bias: Tensor) -> float:
        """By how much ``h W + b`` lowers the squared error on these rows: ``sum w ||e||^2 - sum w ||e - h W - b||^2``."""
        w, h, e, hh, he = (self.sums[name] for name in ("w", "h", "e", "hh", "he"))
        explained = 2 * (weight * he).sum() + 2 * bias @ e
        return float(explained - (weight * (hh @ weight)).sum() - 2 * (h @ weight) @ bias - w * bias @ bias)


def cross_validated(folds: Sequence[Regression], ridges: Sequence[float]) -> tuple[Tensor, Tensor, float | None]:
    """The fit on all folds with the ridge that is best on rows that it was not fitted on, and that ridge.

    Every fold is predicted from the others. Where no ridge lowers the error there, or all rows are in one fold (of a
    single image), nothing is fitted: zeros, ``None``.
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


@dataclass(frozen=True)
class OutputRefit:
    """Minimise ``sum_t w_t ||s_t - s^_t - f^_t - (h_t W + b)||^2 + ridge s ||W||^2`` half by half, over W and b.

    s: the dense stream after the half; s^: the smaller model's before it; f^: what its half adds; h: inputs of the half's
    output layer, to whose weight and bias W and b are added. ``w_t`` is ``1 - sensitivity`` plus ``sensitivity`` times the
    share of the position t in the loss's squared gradient at the half's output, so that a late block minds the class token.
    The ridge is chosen half by half, by cross-validation over ``folds`` parts of the images: what a stream has lost is
    much the same for all tokens of an image, so there are far fewer examples than tokens.

    Either model goes through the images once. Memory grows with them: both streams, and the inputs of one output layer,
    are kept, ``4 N T (2 n + k)`` bytes for N images of T tokens (float32; k: that layer's inputs, after reduction).
    """

    ridges: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    sensitivity: float = 0.5
    folds: int = 4

    @torch.no_grad()
    def __call__(
        self,
        dense: nn.Module,
        small: nn.Module,
        sensitivities: Mapping[str, Tensor],
        batches: Iterable[Tensor],
        *,
        progress: bool = False,
    ) -> dict[str, float | None]:
        """Change the output layers of ``small`` in place; the ridge of each, ``None`` where nothing was to be gained.

        ``sensitivities``: of each output layer, the sum of squared gradients by position, (T,). ``batches``: images that
        were calibrated on, (B, C, H, W). Raises ``InputError`` for blocks of another kind.
        """
        steps, device = steps_of(dense), next(dense.parameters()).device
        first, ridges = next(iter(steps.values())), {}
        streams: Streams = [
            (x.cpu(), x.cpu()) for x in first_inputs(dense, first, (batch.to(device) for batch in batches))
        ]
        for name in track(list(steps), "refit", shown=progress):
            old, new = steps[name], small.get_submodule(name)
            if isinstance(old, Block | SwinTransformerBlock):
                for half in HALVES:
                    output = f"{name}.{half}.{OUTPUTS[half]}"
                    ridges[output] = self._half(old, new, half, streams, sensitivities[output], device)
            else:
                for place, (x, y) in enumerate(streams):
                    streams[place] = old(x.to(device)).cpu(), new(y.to(device)).cpu()
        return ridges

    def _half(
        self, old: nn.Module, new: nn.Module, half: str, streams: Streams, sensitivity: Tensor, device: torch.device
    ) -> float | None:
        """Refit one half; the ridge. The streams are replaced by those after it, and either model goes through it once.

        What the layer's inputs h add by its change is added to the stream, instead of going through the half again.
        """
        layer = output_layer(new, half)
        folds = [Regression.empty(layer.in_features, layer.out_features, device) for _ in range(self.folds)]
        share = sensitivity.float() / sensitivity.sum().clamp_min(torch.finfo(torch.float64).tiny)
        weights = 1 - self.sensitivity + self.sensitivity * len(share) * share
        rank, world = rank_and_world()
        inputs, seen = [], rank  # the images go round the processes: their number over all of them decides the fold
        for place, (x, y) in enumerate(streams):
            x, y = x.to(device), y.to(device)
            target = x + branch(old, half, x)
            added, h = branch_and_inputs(new, half, y)
            y = y + added
            streams[place] = target.cpu(), y.cpu()
            error = tokens_of(old, half, target - y)
            there = tokens_of(old, half, torch.ones_like(y[..., :1])).squeeze(-1)  # padding is nobody's output
            rows, h = weights.to(there) * there, h.reshape(*error.shape[:2], -1)
            inputs.append(h.cpu())
            for index, fold in enumerate(folds):
                part = (torch.arange(len(x), device=device) * world + seen) % self.folds == index
                own_h, own_error, own_rows = (t[part].flatten(0, 1).float() for t in (h, error, rows))
                fold.add(own_h, own_error, own_rows)
            seen += len(x) * world
        for fold in folds:
            fold.gather()
        change, shift, ridge = cross_validated(folds, self.ridges)
        if ridge is not None:
            _add_to(layer, change, shift, getattr(old, "ls1" if half == "attn" else "ls2", None))
            self._move(old, half, streams, inputs, change, shift)
        return ridge

    @staticmethod
    def _move(old: nn.Module, half: str, streams: Streams, inputs: list[Tensor], change: Tensor, shift: Tensor) -> None:
        """Add to the smaller model's stream what the change, (k, d) and (d,), makes of the layer's inputs, (B, T, k)."""
        for place, (x, y) in enumerate(streams):
            added = torch.addmm(shift.to(y), inputs[place].to(change.device).flatten(0, 1), change.to(y))
            streams[place] = x, y + stream_of(old, half, added.unflatten(0, (len(y), -1)), y.shape).cpu()


def _add_to(layer: nn.Linear, change: Tensor, shift: Tensor, scale: nn.Module | None) -> None:
    """Add to a layer's weight and bias, (k, d) and (d,), in the units of the stream: ``scale`` stands between the two."""
    if isinstance(scale, LayerScale):
        gamma = as_float64(scale.gamma)
        change, shift = change / gamma, shift / gamma
    layer.weight.data = (as_float64(layer.weight) + change.T).to(layer.weight)
    layer.bias.data = (as_float64(layer.bias) + shift).to(layer.bias)
