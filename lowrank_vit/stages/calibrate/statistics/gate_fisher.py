"""The Fisher information of gates on a layer's inputs."""

from __future__ import annotations

from typing import ClassVar

from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Sums


@STATISTICS.register("gate_fisher")
class GateFisher:
    """Collect ``gate_fisher``, (n, n): the sum over images of ``s s^T``, ``s_j = dL/da_j`` at a = 1 for inputs ``a_j x_j``.

    ``s_j = sum_t x_tj (g_t W^T)_j`` over the tokens of an image. Summed over the inputs that one head makes, it is the sum
    of ``A * dL/dA`` over that head's attention A, as ``sum_k A_qk dL/dA_qk`` is the output of query q times its gradient.
    """

    gradient: ClassVar[bool] = True

    def __call__(self, seen: Seen, sums: Sums) -> None:
        assert seen.weight is not None
        slopes = (seen.by_image * (seen.slopes @ seen.weight)).sum(1)
        sums.add("gate_fisher", slopes.T @ slopes)
