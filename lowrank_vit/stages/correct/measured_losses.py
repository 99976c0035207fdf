"""Measured losses, which correct predicted ones before the budget is spent.

The Fisher information predicts the increase of the loss to second order. Where much is removed, and above all for the
logits of attention, that can be wrong by a factor of ten, and each kind of unit errs in its own way. So every unit is
reduced alone, while the rest of the model stays dense, and the divergence from the dense model, which needs no labels,
says what the reduction really costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, first_inputs, pool_modules
from lowrank_vit.architectures.given import entered, stepped
from lowrank_vit.modules.surgery import exchanged
from lowrank_vit.objectives import Objective
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered, rank_and_world
from lowrank_vit.runtime.spill import Spill

LEAST = 1e-12  # nats: smaller predictions are ignored
IMAGES = "images"  # the key of what both models see
AFTER = "after"  # the key of the stream behind the last step
DENSE = "dense"  # the key of what is read off the dense model


@dataclass(frozen=True)
class MeasuredLosses:
    """Plan, measure every unit at its size in the plan, correct the curves, and plan again, ``rounds`` times.

    ``images``: the number of calibration images measured; with few, the allocator follows what is cheap by chance.
    ``trust``: the weight of the measured loss; 0.5 is the geometric mean of predicted and measured.
    """

    rounds: int = 1
    images: int = 96
    trust: float = 0.5

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.images < 1 or not 0 <= self.trust <= 1:
            raise InputError(
                f"rounds={self.rounds}, images={self.images}, trust={self.trust}: need at least 1, 1, and a share from 0 to 1"
            )

    def __call__(self, curve: ErrorCurve, points: Sequence[tuple[int, float]]) -> ErrorCurve:
        """Return the curve corrected by (size, measured loss)."""
        return corrected(curve, points, self.trust)


class Replay:
    """The streams of some images through a dense model, from which a pass resumes with one module exchanged.

    ``images``: how many images of the batches, (B, C, H, W), are used, the first ones, or all if there are fewer; of
    several processes, each has every world-th of them. ``kept``: where the streams are kept, batch by batch.
    Raises ``InputError`` for a model whose blocks are of an unknown kind.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, batches: Iterable[Tensor], images: int, kept: Spill
    ) -> None:
        self._model, self._objective, self._family = model, objective, family_of(model)
        self._steps, self._kept = self._family.steps(model), kept
        self._device = device = next(model.parameters()).device
        with torch.no_grad():
            mine = len(range(rank_and_world()[0], images, rank_and_world()[1]))
            images = [batch.to(device) for batch in _first(batches, mine)]
            self._given, inputs = entered(model, self._steps, images)
            first = next(iter(self._steps))
            for batch, (seen, x) in enumerate(zip(images, inputs, strict=True)):
                kept[IMAGES, batch], kept[first, batch] = seen, x
            self._batches = len(images)
            for batch in range(self._batches):
                x = kept[first, batch].to(device)
                for name, step in self._steps.items():
                    kept[name, batch], x = x, stepped(step, x, self._given[name])
                kept[AFTER, batch], kept[DENSE, batch] = x, self._finish(x)

    @torch.no_grad()
    def divergence(self, name: str, module: nn.Module) -> float:
        """Measure the mean divergence from the dense model, ``module`` in place of the one called ``name``.

        One in no step comes ahead of them all, or behind them, if it pools the tokens.
        """
        names = list(self._steps)
        start = next((index for index, step in enumerate(names) if name.startswith(f"{step}.")), None)
        if start is None and name.startswith(tuple(pool for pool, _ in pool_modules(self._model))):
            start = len(names)
        total, count = 0.0, 0
        with exchanged(self._model, name, module):
            for batch in range(self._batches):
                x = self._entering(start, batch)
                for step in names[start or 0 :]:
                    x = stepped(self._steps[step], x, self._given[step])
                dense = self._kept[DENSE, batch].to(self._device)
                total += float(self._objective.divergence(dense, self._finish(x)))
                count += len(x)
        totals, counts = zip(*gathered((total, count)), strict=True)
        return float(sum(totals)) / sum(counts)

    def _entering(self, start: int | None, batch: int) -> Tensor:
        """Return the stream before a step; None: before the first, computed anew, as what was exchanged is ahead of it."""
        names = [*self._steps, AFTER]
        if start is not None:
            return self._kept[names[start], batch].to(self._device)
        return next(first_inputs(self._model, self._steps[names[0]], [self._kept[IMAGES, batch].to(self._device)]))

    def _finish(self, x: Tensor) -> Tensor:
        """Return the objective's reading of the outputs, given the stream after the last step."""
        return self._objective.reading(self._family.head(self._model, x))


def _first(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    for batch in batches:
        yield batch[:images]
        images -= len(batch)
        if images <= 0:
            return


def corrected(curve: ErrorCurve, points: Sequence[tuple[int, float]], trust: float) -> ErrorCurve:
    """Scale a curve's losses towards the measured ones; ``points``: (count, loss).

    The factor is measured / predicted to the power of ``trust``: 1 gives the measured losses, 0 changes
    nothing. Its logarithm is interpolated linearly between the counts and constant beyond them. The result never rises
    with the count, as keeping more cannot do harm.
    """
    ratios = {
        count: max(loss, LEAST) / float(curve.errors[count]) for count, loss in points if curve.errors[count] > LEAST
    }
    if not ratios:
        return curve
    counts = sorted(ratios)
    factors = np.exp(np.interp(range(len(curve.errors)), counts, trust * np.log([ratios[count] for count in counts])))
    errors = curve.errors * torch.from_numpy(factors).to(curve.errors)
    return replace(curve, errors=errors.flip(0).cummax(0).values.flip(0))
