"""Measured curves, in place of predicted ones: what every unit costs the whole network at several of its sizes.

Every unit is reduced alone, at a few sizes, while the rest of the model stays dense; between those sizes the loss is
interpolated. Methods that choose ranks by a measured sensitivity allocate by such curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lowrank_vit.objectives import Objective
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.correct.measured_losses import LEAST, Comparison

KL, FEATURE = "kl", "feature"


class FeatureRatio:
    """Measure the relative error of the classifier's input, ``||f - f'||^2 / ||f'||^2``, f' that of the smaller model.

    The denominator is FLAR-SVD's (Thoma et al., CVPRW 2025; read in its code): the smaller model's features.
    """

    unit: ClassVar[str] = "shares of the features' energy"

    def reading(self, outputs: Tensor) -> Tensor:
        """Return the features, (B, n), float64."""
        return outputs.double().flatten(1)

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        """Return the ratio, summed over the batch."""
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

    revision: ClassVar[int] = 2

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
