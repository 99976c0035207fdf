"""Keep some hidden units of an MLP and refit its second layer on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowrank_vit.linalg.elimination import covariance, eliminate
from lowrank_vit.linalg.metric import cholesky_root
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import MlpSite
from lowrank_vit.stages.decompose import MLPS, Weights


@MLPS.register("interpolative")
@dataclass(frozen=True)
class Interpolation:
    """Keep hidden units of an MLP by backward elimination and refit its second layer on them.

    The loss is ``1/2 tr(G E^T C E)`` in nats per image: C the hidden covariance over weighted tokens, G the second
    moment of the loss gradient at the MLP's output, summed over the tokens of an image.
    """

    revision: ClassVar[int] = 1

    damping: float = 1e-4  # of the mean second moment: shrinks the refit towards the weight as it was
    gradient_damping: float = 0.1  # of the mean eigenvalue of G
    sensitivity: float = 0.5  # of a token's weight: how far the loss's gradient decides it

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second", "gradient_second", "sensitive_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Decompose the second layer; weight: (h, d), moments: its statistics."""
        mean, spread, ridge = covariance(moments, self.damping, self.sensitivity)
        root, _ = cholesky_root(moments.mean("gradient_second"), self.gradient_damping)
        order, loss = eliminate(spread, weight @ root)
        return InputSubset(Directions(order, loss), None, spread, mean, weight, ridge)
