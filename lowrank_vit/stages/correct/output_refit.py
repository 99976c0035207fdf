"""Refit of what every branch of a block adds to the stream, once everything before it is smaller.

A branch is approximated for the inputs that the dense model gives it, but gets those of the smaller model. So, branch by
branch from first to last, its output layer is refitted to bring the stream back to the dense model's: in closed form,
without labels, and without extra parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, family_of
from lowrank_vit.architectures.given import entered
from lowrank_vit.linalg.gram import gram, weighted_sum
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.moments import as_float64
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.runtime.progress import track

Streams = list[tuple[Tensor, Tensor]]  # of the dense and of the smaller model, batch by batch, (B, ..., n)


def check_refit(model: nn.Module, batches: object) -> None:
    """Raise ``InputError``, before anything long begins, for a model or images that could not be refitted later."""
    family_of(model).steps(model)
    if isinstance(batches, Iterator):
        raise InputError("the calibration images can be gone through only once: pass a list or a data loader")


@dataclass
class Regression:
    """Sums for the affine least-squares fit of e: (d,) on h: (k,), rows weighted; products in float32, sums in float64.

    Without a ``bias`` the fit is linear: the sums of h and e stay zero, as if the means were.
    """

    sums: dict[str, Tensor]
    bias: bool = True

    @classmethod
    def empty(cls, k: int, d: int, device: torch.device | str = "cpu", *, bias: bool = True) -> Regression:
        """Make sums without rows."""
        shapes: dict[str, tuple[int, ...]] = {"w": (), "h": (k,), "e": (d,), "hh": (k, k), "he": (k, d)}
        return cls(
            {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}, bias
        )

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
        root, _ = cholesky_root(hh - torch.outer(h, h), ridge, scale)
        weight = torch.cholesky_solve(he - torch.outer(h, e), root)
        return weight, e - h @ weight

    def nothing(self) -> tuple[Tensor, Tensor]:
        """Return the ``W, b`` that change nothing: zeros."""
        return torch.zeros_like(self.sums["he"]), torch.zeros_like(self.sums["e"])

    def gain(self, weight: Tensor, bias: Tensor) -> float:
        """Compute by how much ``h W + b`` lowers these rows' squared error: ``sum w ||e||^2 - sum w ||e - h W - b||^2``."""
        w, h, e, hh, he = (self.sums[name] for name in ("w", "h", "e", "hh", "he"))
        explained = 2 * (weight * he).sum() + 2 * bias @ e
        return float(explained - (weight * (hh @ weight)).sum() - 2 * (h @ weight) @ bias - w * bias @ bias)


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


@dataclass(frozen=True)
class OutputRefit:
    """Minimise ``sum_t w_t ||s_t - s^_t - f^_t - (h_t W + b)||^2 + ridge s ||W||^2`` branch by branch, over W and b.

    s: the dense stream after the branch; s^: the smaller model's before it; f^: what its branch adds; h: inputs of the
    branch's output layer, to whose weight and bias W and b are added. ``w_t`` is ``1 - sensitivity`` plus
    ``sensitivity`` times the share of the position t in the loss's squared gradient at the branch's output, so that a
    late block is fitted at the class token. The ridge is chosen branch by branch, by cross-validation over ``folds``
    groups of images: what a stream has lost is much the same for all tokens of an image, so there are far fewer
    examples than tokens. Where a norm follows the output layer (Swin V2), its own dense outputs take the place of
    ``s_t - s^_t``: what the stream has lost before cannot be made up for behind a norm.

    Both models see the images once. Memory grows with them: both streams, and the inputs of one output layer,
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
        """Change the output layers of ``small`` in place; return the ridge of each, ``None`` where nothing was gained.

        ``sensitivities``: of each output layer, the sum of squared gradients by position, (T,). ``batches``: the
        calibration images, (B, C, H, W). Raises ``InputError`` for blocks of an unknown kind.
        """
        family, device = family_of(dense), next(dense.parameters()).device
        steps, ridges = family.steps(dense), {}
        given, inputs = entered(dense, steps, (batch.to(device) for batch in batches))
        streams: Streams = [(x.cpu(), x.cpu()) for x in inputs]
        for name in track(list(steps), "refit", shown=progress):
            old, new = steps[name], small.get_submodule(name)
            branches = list(zip(family.branches(old), family.branches(new), strict=True))
            sources = streams
            for place, (dense_branch, small_branch) in enumerate(branches):
                if not dense_branch.beside:
                    shared = any(other.beside for other, _ in branches[place + 1 : place + 2])
                    sources = list(streams) if shared else streams
                output = f"{name}.{dense_branch.output_name}"
                pair = dense_branch, small_branch
                ridges[output] = self._branch(*pair, streams, sources, sensitivities[output], given[name])
            if not branches:
                for place, (x, y) in enumerate(streams):
                    x, y = (step(t.to(device), **given[name]).cpu() for step, t in ((old, x), (new, y)))
                    streams[place] = x, y
        return ridges

    def _branch(
        self,
        old: Branch,
        new: Branch,
        streams: Streams,
        sources: Streams,
        sensitivity: Tensor,
        given: dict[str, Tensor],
    ) -> float | None:
        """Refit one branch, which sees ``sources``, and return the ridge. The streams are replaced by those after it.

        Both models run it once; then what the change adds to the layer's outputs is added (behind a norm: it runs again).
        """
        layer, inputs = new.output_layer, []
        shape, device = (layer.in_features, layer.out_features), layer.weight.device
        folds = [Regression.empty(*shape, device, bias=layer.bias is not None) for _ in range(self.folds)]
        (seen, world), weights = rank_and_world(), self._weights(sensitivity)
        for place, pairs in enumerate(zip(streams, sources, strict=True)):
            pair, source = ([t.to(device) for t in each] for each in pairs)
            x, y, error, h = _gap(old, new, pair, source, given)
            streams[place] = x.cpu(), y.cpu()
            there = old.tokens(torch.ones_like(y))[..., 0]  # padding is no output
            rows, h = weights.to(there) * there, h.reshape(*error.shape[:2], -1)
            inputs.append(h.cpu())
            # images alternate between processes: an image's index over all of them decides its fold
            own = (torch.arange(len(x), device=x.device) * world + seen) % self.folds
            for index, fold in enumerate(folds):
                fold.add(*(t[own == index].flatten(0, 1).float() for t in (h, error, rows)))
            seen += len(x) * world
        for fold in folds:
            fold.gather()
        change, shift, ridge = cross_validated(folds, self.ridges)
        if ridge is not None:
            _add_to(layer, change, shift, old.scale)
        if old.normed:
            after = [new.add(y.to(device), **given).cpu() for _, y in sources]
            streams[:] = [(x, y + added) for (x, y), added in zip(streams, after, strict=True)]
        elif ridge is not None:
            self._move(old, streams, inputs, change, shift)
        return ridge

    def _weights(self, sensitivity: Tensor) -> Tensor:
        """Return the weight of every position, (T,)."""
        share = sensitivity.float() / sensitivity.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return 1 - self.sensitivity + self.sensitivity * len(share) * share

    @staticmethod
    def _move(old: Branch, streams: Streams, inputs: list[Tensor], change: Tensor, shift: Tensor) -> None:
        """Add to the smaller model's stream what the change, (k, d) and (d,), adds given the layer's inputs, (B, T, k)."""
        for place, (x, y) in enumerate(streams):
            added = torch.addmm(shift.to(y), inputs[place].to(change.device).flatten(0, 1), change.to(y))
            streams[place] = x, y + old.stream(added.unflatten(0, (len(y), -1)), y.shape).cpu()


def _gap(
    old: Branch, new: Branch, streams: Sequence[Tensor], sources: Sequence[Tensor], given: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both streams after a branch, what is to be mended, (B, T, d), and the inputs of the output layer.

    ``sources``: what the branch sees. To be mended is the difference of the streams or, where a norm follows, of what the
    layers make: the smaller model's stream, which is to be added to later, is then still the one before the branch.
    """
    (wanted, seen), (added, h) = (
        branch.with_inputs(source, **given) for branch, source in zip((old, new), sources, strict=True)
    )
    x, y = streams
    if not old.normed:
        x, y = x + wanted, y + added
        return x, y, old.tokens(x - y), h
    error = old.output_layer(seen) - new.output_layer(h)
    return x + wanted, y, error.reshape(len(x), -1, error.shape[-1]), h


def _add_to(layer: nn.Linear, change: Tensor, shift: Tensor, scale: Tensor | None) -> None:
    """Add (k, d) and (d,), in the units of the stream, to a layer's weight and bias; ``scale`` follows the layer."""
    if scale is not None:
        gamma = as_float64(scale)
        change, shift = change / gamma, shift / gamma
    layer.weight.data = (as_float64(layer.weight) + change.T).to(layer.weight)
    if layer.bias is not None:
        layer.bias.data = (as_float64(layer.bias) + shift).to(layer.bias)
