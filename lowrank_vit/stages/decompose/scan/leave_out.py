"""Leave a scan out, and keep what stands beside it: the skip of each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.factors import Directions
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import SCANS


@SCANS.register("leave_out")
@dataclass(frozen=True)
class LeaveOut:
    """Keep all channels of a scan, or none.

    The loss is ``1/2 tr(G W^T C W)`` in nats per image: C the second moment of what the output layer W is no longer
    given, G that of the loss's gradient at its output, summed over the tokens of an image.
    """

    revision: ClassVar[int] = 1

    gradient_damping: float = 0.1  # of the mean eigenvalue of G, as in the decompositions beside it

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"scan_change"}), frozenset({"gradient_second"}))

    def __call__(self, weight: Tensor, change: Moments, output: Moments) -> Directions:
        """Predict the loss; weight: (D, n) of the output layer, ``change``, ``output``: of the first and of this layer.

        The one direction is the skip: with it alone, or without it, the scan is left out.
        """
        root, _ = cholesky_root(output.mean("gradient_second"), self.gradient_damping)
        lost = weight @ root
        loss = 0.5 * (lost * (change.mean("scan_change") @ lost)).sum()
        return Directions(torch.zeros(1, dtype=torch.long, device=loss.device), loss.expand(2).clone())
