"""Mean magnitudes of a layer's inputs."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("input_abs")
class InputAbs:
    """Collect ``input_abs``, (n,): the sum of ``|x|`` over tokens."""

    gradient: ClassVar[bool] = False

    def __call__(self, seen: Seen, sums: Sums) -> None:
        sums.add("input_abs", seen.shared("abs", lambda: seen.rows.abs().sum(0)))
