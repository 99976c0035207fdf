"""Second moments of the loss's gradient over positions, for what is added to the stream there."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("gradient_rows")
class GradientRows:
    """Collect ``gradient_rows``, (t, t): the sum over images of ``G G^T``, G: (t, d) an image's gradient at all positions."""

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        sums.add("gradient_rows", (seen.slopes @ seen.slopes.mT).sum(0))
