"""What a compression preserves: the probe of the loss, the divergence that is measured, and the distillation loss.

One file for each objective. Every stage works with any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lowrank_vit.modules.predicting import predict
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.registry import Registry

Outputs = tuple[Tensor, ...]  # features (B, width), what is compared (B, ...), then outputs of blocks (B, ..., width)


class Objective(Protocol):
    """The interface of an objective. ``outputs`` is what the model returns for a batch of images, (B, ...)."""

    @property
    def probe_name(self) -> str:
        """Return the name of the probe; statistics of different probes are cached separately."""
        ...

    def check(self, model: nn.Module) -> None:
        """Raise ``InputError`` for a model that the objective cannot be measured on."""
        ...

    def probe(self, outputs: Tensor, images: Tensor, seed: int) -> Tensor:
        """Return a random scalar whose gradient's second moment is the loss's curvature, summed over the batch."""
        ...

    def reading(self, outputs: Tensor) -> Tensor:
        """Return the values that ``divergence`` compares, float64."""
        ...

    def divergence(self, dense: Tensor, small: Tensor) -> Tensor:
        """Return how far the small model's reading is from the dense one's, summed over the batch."""
        ...

    def targets(self, model: nn.Module, images: Tensor, blocks: bool = False) -> Outputs:
        """Return the outputs of a model that distillation compares; with ``blocks``, those of each block, too."""
        ...

    def pull(self, small: Tensor, dense: Tensor, temperature: float) -> Tensor:
        """Return the distillation loss of the compared outputs, a mean over the batch, differentiable."""
        ...


OBJECTIVES: Registry[type[Objective]] = Registry("objective", __name__)


def divergences(
    objective: Objective,
    dense: nn.Module,
    models: Sequence[nn.Module],
    batches: Iterable[Tensor],
    *,
    progress: bool = False,
) -> list[float]:
    """Measure the mean divergence of each model from the dense one over the images of all processes."""
    device, totals, count = next(dense.parameters()).device, [0.0] * len(models), 0
    with torch.inference_mode():
        for images in (batch.to(device) for batch in track(batches, "divergence", shown=progress)):
            reading = objective.reading(predict(dense, images))
            for index, model in enumerate(models):
                totals[index] += float(objective.divergence(reading, objective.reading(predict(model, images))))
            count += len(images)
    *sums, images_seen = map(sum, zip(*gathered((*totals, count)), strict=True))
    return [total / images_seen for total in sums]
