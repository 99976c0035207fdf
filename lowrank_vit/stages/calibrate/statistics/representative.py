"""The paper's representative input: the mean over images."""

from __future__ import annotations

from typing import ClassVar

import torch

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("representative")
class Representative:
    """Collect ``representative``, (t, n): the sum over images of X, all tokens of one; and the number of their windows."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        sums.add("representative", seen.shared("representative", lambda: seen.by_image.sum(0)))
        sums.add("representative_windows", torch.tensor(float(len(seen.x)), device=seen.x.device))
