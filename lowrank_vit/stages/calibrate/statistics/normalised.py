"""Second moments with every image weighted by ``1 / ||X_i W||_F^2``: equations (3) and (5) of the paper."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.linalg.gram import gram_panels, weighted_sum
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


def _weights(seen: Seen, sums: Sums) -> Tensor:
    """Return each token's weight, (tokens,), and add its sums."""
    energy = seen.products.reshape(seen.images, -1).square().sum(1).clamp_min(torch.finfo(seen.products.dtype).tiny)
    weights = energy.reciprocal().repeat_interleave(len(seen.rows) // seen.images)
    sums.add("normalised_weight", weights.sum())
    sums.add("normalised_input_sum", weighted_sum(seen.rows, weights))
    return weights


@STATISTICS.register("normalised_input_second")
class NormalisedInputSecond:
    """Collect ``normalised_input_second``, (n, n): the weighted sum of ``x x^T``."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        sums.add_second("normalised_input_second", gram_panels(seen.rows, _weights(seen, sums)))


@STATISTICS.register("normalised_output_second")
class NormalisedOutputSecond:
    """Collect ``normalised_output_second``, (d, d): the weighted sum of ``y y^T``. Never collected beside the input's."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        sums.add_second("normalised_output_second", gram_panels(seen.products, _weights(seen, sums)))
