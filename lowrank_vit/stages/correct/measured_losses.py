"""Measured losses, which correct predicted ones before the budget is spent.

The Fisher information predicts the increase of the loss to second order. Where much is removed, and above all for the
logits of attention, that can be wrong by a factor of ten, and each kind of unit errs in its own way. So every unit is
reduced alone, while the rest of the model stays dense, and the divergence from the dense model, which needs no labels,
says what the reduction really costs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of, first_inputs, pool_modules
from lowrank_vit.architectures.linears import classifiers
from lowrank_vit.architectures.step_inputs import enter, run_step
from lowrank_vit.modules.surgery import exchanged
from lowrank_vit.objectives import Objective
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered, rank_and_world
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.runtime.tensors import Spill

LEAST = 1e-12  # nats: smaller predictions are ignored
IMAGES = "images"  # the key of what both models see
AFTER = "after"  # the key of the stream behind the last step
DENSE = "dense"  # the key of what is read off the dense model
KL, FEATURE = "kl", "feature"


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


class Comparison(Protocol):
    """Define how the outputs of two models are compared, as an ``Objective`` does; ``unit``: the divergence's, in words."""

    unit: ClassVar[str]

    def reading(self, outputs: Tensor) -> Tensor:
        """Return the values that ``divergence`` compares, float64."""

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        """Return how far the small model's reading is from the dense one's, summed over the batch."""


class Replay:
    """Keep the streams of some images through a dense model, to resume a pass from them with modules exchanged.

    ``images``: how many images of the batches, (B, C, H, W), are used, the first ones, or all if there are fewer; of
    several processes, each has every world-th of them. ``kept``: where the streams are kept, batch by batch.
    ``features``: the inputs of the classifier are compared.
    Raises ``InputError`` for a model whose blocks are of an unknown kind.
    """

    def __init__(
        self,
        model: nn.Module,
        comparison: Comparison,
        batches: Iterable[Tensor],
        images: int,
        kept: Spill,
        *,
        features: bool = False,
    ) -> None:
        self._model, self._comparison, self._family = model, comparison, family_of(model)
        self._classifier = _classifier_of(model) if features else None
        self._steps, self._kept = self._family.steps(model), kept
        self._device = device = next(model.parameters()).device
        with torch.no_grad():
            mine = len(range(rank_and_world()[0], images, rank_and_world()[1]))
            seen = [batch.to(device) for batch in first_images(batches, mine)]
            self._given, inputs = enter(model, self._steps, seen)
            first, self._batches = next(iter(self._steps)), len(seen)
            for batch, (own, x) in enumerate(zip(seen, inputs, strict=True)):
                kept[IMAGES, batch], kept[first, batch] = own, x
            for batch in range(self._batches):
                x = kept[first, batch].to(device)
                for name, step in self._steps.items():
                    kept[name, batch], x = x, run_step(step, x, self._given[name])
                kept[AFTER, batch], kept[DENSE, batch] = x, self._finish(x)

    def divergence(self, name: str, module: nn.Module) -> float:
        """Measure the mean divergence from the dense model, ``module`` in place of the one called ``name``."""
        return self.together({name: module})

    @torch.no_grad()
    def together(self, modules: Mapping[str, nn.Module]) -> float:
        """Measure the mean divergence from the dense model with several modules exchanged, by name.

        Raises ``InputError`` for a module outside of the blocks that neither embeds the images nor pools the tokens.
        """
        names = list(self._steps)
        start = min((self._position(name) for name in modules), default=len(names))
        total, count = 0.0, 0
        with ExitStack() as stack:
            for name, module in modules.items():
                stack.enter_context(exchanged(self._model, name, module))
            for batch in range(self._batches):
                x = self._entering(start, batch)
                for step in names[max(start, 0) :]:
                    x = run_step(modules.get(step, self._steps[step]), x, self._given[step])
                dense = self._kept[DENSE, batch].to(self._device)
                total += float(self._comparison.divergence(dense, self._finish(x)))
                count += len(x)
        totals, counts = zip(*gathered((total, count)), strict=True)
        return float(sum(totals)) / sum(counts)

    def _position(self, name: str) -> int:
        """Return the position of the step that holds a module; -1 before all steps, their number after them."""
        for position, step in enumerate(self._steps):
            if name == step or name.startswith(f"{step}."):
                return position
        if name.startswith(tuple(pool for pool, _ in pool_modules(self._model))):
            return len(self._steps)
        table, modules = self._family.positions(self._model), [each for each, _ in self._model.named_modules()]
        if (table is not None and name == table.name) or name in modules[: modules.index(next(iter(self._steps)))]:
            return -1
        raise InputError(f"{name!r} is in no block, so its loss cannot be measured: leave it out by `sites=`")

    def _entering(self, start: int, batch: int) -> Tensor:
        """Return the stream before a step; for -1, before the first, computed anew, as the exchanged module comes earlier."""
        names = [*self._steps, AFTER]
        if start >= 0:
            return self._kept[names[start], batch].to(self._device)
        return next(first_inputs(self._model, self._steps[names[0]], [self._kept[IMAGES, batch].to(self._device)]))

    def _finish(self, x: Tensor) -> Tensor:
        """Return the reading of the outputs, or of the classifier's inputs, given the stream after the last step."""
        with ExitStack() as stack:
            if self._classifier is not None:
                stack.enter_context(exchanged(self._model, self._classifier, nn.Identity()))
            return self._comparison.reading(self._family.head(self._model, x))


def _classifier_of(model: Any) -> str | None:
    """Return the name of a model's classifier; None where it has none, or several."""
    if not hasattr(model, "get_classifier"):
        names = list(classifiers(model))
        return names[0] if len(names) == 1 else None
    classifier = model.get_classifier()
    return next((name for name, module in model.named_modules() if name and module is classifier), None)


def first_images(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    """Yield the first images of batches, (B, C, H, W), batch by batch."""
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


class FeatureRatio:
    """Measure the relative error of the classifier's input, ``||f - f'||^2 / ||f'||^2``, f' that of the smaller model.

    The denominator is FLAR-SVD's (Thoma et al., CVPRW 2025; read in its code): the smaller model's features.
    """

    unit: ClassVar[str] = "shares of the features' energy"

    def reading(self, outputs: Tensor) -> Tensor:
        return outputs.double().flatten(1)

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        energy = small.square().sum(1).clamp_min(torch.finfo(small.dtype).tiny)
        return ((dense - small).square().sum(1) / energy).sum()


@dataclass(frozen=True)
class MeasuredCurves:
    """Measure every unit's loss at its least size, and at ``points`` more from 1/``span`` of its largest size up to it.

    These are spaced geometrically; or, with ``ratios``, the sizes are those shares of the largest one that saves anything.
    No size below the least that was measured is ever chosen.
    ``currency``: ``"kl"``, the objective's divergence from the dense model (for a classifier ``KL(dense || small)`` in
    nats per image), or ``"feature"``, ``FeatureRatio``. ``images``: how many calibration images are measured.
    The logarithm of the loss is interpolated linearly in that of the size; the running minimum from the smallest size on
    never rises. The dense choice loses nothing.
    """

    revision: ClassVar[int] = 2  # the least size is measured, and none below it chosen

    currency: str = KL
    images: int = 96
    points: int = 7
    span: int = 16
    ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.currency not in (KL, FEATURE):
            raise unknown("currency of measured curves", self.currency, (KL, FEATURE))
        if self.images < 1 or self.points < 1 or self.span < 1:
            raise InputError(f"images={self.images}, points={self.points}, span={self.span}: all must be at least 1")
        if not all(0 < ratio <= 1 for ratio in self.ratios):
            raise InputError(f"ratios={self.ratios}: shares of the largest size, above 0 and up to 1")

    def comparison(self, objective: Objective) -> Comparison:
        """Return the comparison of outputs to use; ``objective``: the recipe's."""
        return objective if self.currency == KL else FeatureRatio()

    @property
    def of_features(self) -> bool:
        """Tell whether the classifier's inputs are compared, not its outputs."""
        return self.currency == FEATURE

    def sizes(self, curve: ErrorCurve) -> list[int]:
        """Return the sizes to measure, ascending, each of them one that an allocator may choose."""
        if not curve.ranks:
            return []
        least, largest = curve.ranks[0], curve.ranks[-1]
        if self.ratios:
            wanted = np.maximum(np.array(self.ratios) * largest, least)
        else:
            wanted = np.append(least, np.geomspace(max(largest / self.span, least), largest, self.points))
        places = np.rint((wanted - least) / curve.ranks.step).astype(int)
        return sorted({curve.ranks[int(place)] for place in places})

    def __call__(self, curve: ErrorCurve, points: Sequence[tuple[int, float]]) -> ErrorCurve:
        """Return the curve with measured losses in place of its own; ``points``: (size, loss), at least one."""
        if not points:
            return curve
        sizes, losses = zip(*sorted(points), strict=True)
        logs = np.log(np.maximum(losses, LEAST))
        ranks = np.log(np.maximum(np.arange(len(curve.errors)), 1))
        errors = np.minimum.accumulate(np.exp(np.interp(ranks, np.log(sizes), logs)))
        return replace(curve, errors=torch.from_numpy(errors).to(curve.errors), least=sizes[0])
