"""Second moments of a layer's inputs and outputs."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.linalg.metric import gram_panels
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("input_second")
class InputSecond:
    """Collect ``input_second``, (n, n): the sum of ``x x^T`` over tokens."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch."""
        sums.add_second("input_second", seen.shared("second", lambda: gram_panels(seen.rows)))


@STATISTICS.register("output_second")
class OutputSecond:
    """Collect ``output_second``, (d, d): the sum of ``y y^T`` over tokens, y without the bias."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        """Add a batch."""
        sums.add_second("output_second", gram_panels(seen.products))
