"""How far a file in fewer bits is from the float32 file, on images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_vit.objectives import Objective
from lowrank_vit.stages.export.formats import Run


@dataclass(frozen=True)
class Agreement:
    """Hold the mean divergence of an objective, and the percent of images whose largest output is the same."""

    divergence: float
    percent: float


def agreement(objective: Objective, exact: Run, other: Run, images: Sequence[Tensor]) -> Agreement:
    """Measure how far a file's outputs are from another's; ``images``: batches (B, C, H, W)."""
    total, same = 0.0, 0
    for batch in images:
        expected, found = (objective.reading(run(batch)) for run in (exact, other))
        total += float(objective.divergence(expected, found))
        firsts = [outputs.flatten(1).argmax(1) for outputs in (expected, found)]
        same += int(torch.eq(*firsts).sum())
    count = sum(map(len, images))
    return Agreement(total / count, 100 * same / count)
