"""Statistics of the loss's gradient at a layer's output: the Kronecker factors of the Fisher information."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.linalg.metric import gram_panels, weighted_sum
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("gradient_second")
class GradientSecond:
    """Collect ``gradient_second``, (d, d): the sum of ``g g^T`` over tokens."""

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch."""
        sums.add_second("gradient_second", gram_panels(seen.slopes.flatten(0, 1)))


@STATISTICS.register("sensitive_second")
class SensitiveSecond:
    """Collect ``sensitive_second``, (n, n): the sum of ``||g||^2 x x^T``, with ``sensitive_{input_sum,weight,tokens}``."""

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch."""
        weights = seen.slopes.flatten(0, 1).square().sum(1)
        sums.add("sensitive_weight", weights.sum())
        sums.add("sensitive_tokens", weights.view(seen.images, -1).sum(0))
        sums.add("sensitive_input_sum", weighted_sum(seen.rows, weights))
        sums.add_second("sensitive_second", gram_panels(seen.rows, weights))


@STATISTICS.register("fisher_rows")
class FisherRows:
    """Collect ``fisher_rows``, (n,): the sum over images of the row sums of the squared weight gradient."""

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch: row i of an image's weight gradient is X[:, i]^T g, so its norm needs no (n, d) matrix."""
        slopes, inputs = seen.slopes, seen.by_image
        sums.add("fisher_rows", (((slopes @ slopes.mT) @ inputs) * inputs).sum((0, 1)))
