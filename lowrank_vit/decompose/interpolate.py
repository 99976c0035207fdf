"""Column-subset approximation: keep some of a layer's inputs, refit its weight on them.

Of ``y = h W + b``, h: hidden units (or the directions of all heads' values), only a subset S is kept, and W is refitted
by least squares on the hidden covariance C; the mean of what is lost goes into the bias. A subset commutes with the
activation function, so the units that are left out need not be computed at all: saving starts with the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank_vit.decompose import MLPS
from lowrank_vit.metric import cholesky_root
from lowrank_vit.parts import Directions, MlpSite, Part
from lowrank_vit.records import Moments

COMPACT = 64  # removals between two compactions of the matrices


def covariance(moments: Moments, damping: float = 0.0, sensitivity: float = 0.0) -> tuple[Tensor, Tensor, float]:
    """Mean (n,) and covariance (n, n) of a layer's input, with a ridge on the diagonal; the ridge.

    It is ``damping`` of the mean second moment, or as much more as a sound factorisation takes.
    A token weighs ``1 - sensitivity``, plus ``sensitivity`` times its share of the loss's squared gradient: what is fitted
    is then the output where the loss listens to it (in a last block, the class token alone).
    """
    second, mean = moments.mean("input_second"), moments.mean("input_sum")
    if sensitivity:
        second = torch.lerp(second, moments.mean("sensitive_second"), sensitivity)
        mean = torch.lerp(mean, moments.mean("sensitive_input_sum"), sensitivity)
    scale = second.diagonal().mean().clamp_min(1e-30)
    spread = second - torch.outer(mean, mean)
    _, ridge = cholesky_root(spread, damping, scale)
    return mean, spread + ridge * scale * torch.eye(len(mean), dtype=mean.dtype, device=mean.device), ridge


def refit(covariance: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """``argmin_V tr((W - V^)^T C (W - V^))``, V^ being V in the rows ``kept`` and zero elsewhere: ``C_SS^-1 C_S: W``.

    covariance: (k, k), positive definite; weight: (k, d); kept: (s,) indices. Returns (s, d); with all units kept, W.
    """
    root = torch.linalg.cholesky(covariance[kept][:, kept])
    rest = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    rest[kept] = False
    missing = covariance[kept][:, rest] @ weight[rest]
    return weight[kept] + torch.cholesky_solve(missing, root)


def refitted(part: Part, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of the kept units, (s, d), and what it stands for as a weight of the layer's own inputs, (k, d).

    The mean of what is lost, ``mean @ (W - W^)``, belongs into the bias.
    """
    rows = refit(part.covariance, part.weight, kept)
    whole = torch.zeros_like(part.weight)
    whole[kept] = rows
    return rows, whole if part.basis is None else torch.block_diag(*part.basis) @ whole


def eliminate(covariance: Tensor, weight: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Greedy backward elimination: one by one, remove the unit whose loss after refitting all others is the least.

    Objective: ``1/2 tr((W - V^)^T C (W - V^))`` with V^ refitted on the units that are left. With ``P = C_SS^-1``,
    removing j costs ``||V_j||^2 / (2 P_jj)``; then ``V <- V - P_:j V_j / P_jj`` and ``P <- P - P_:j P_j: / P_jj`` are
    the refitted weight and the inverse without j. O(k^2) a step, O(k^3) in all.

    covariance: (k, k), positive definite; weight: (k, d), already multiplied by the root of the output's metric.
    order: (k,), where the order is given and only its losses are asked for.
    Returns the units, the last to be removed first, (k,), and the loss with 0 ... k of them kept, (k + 1,).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    weight, alive = weight.clone(), torch.arange(len(weight), device=weight.device)
    gone = torch.zeros_like(alive, dtype=torch.bool)
    removed, costs = [], []
    for left_over in range(len(weight) - 1, -1, -1):
        cost = (0.5 * weight.square().sum(1) / inverse.diagonal()).masked_fill(gone, torch.inf)
        j = int(cost.argmin() if order is None else (alive == order[left_over]).nonzero())
        removed.append(alive[j])
        costs.append(cost[j])
        column = inverse[:, j] / inverse[j, j]
        weight.addr_(column, weight[j].clone(), alpha=-1)
        inverse.addr_(column, inverse[j].clone(), alpha=-1)
        gone[j] = True
        if len(removed) % COMPACT == 0:  # what is gone costs time in every step
            left = ~gone
            inverse, weight, alive, gone = inverse[left][:, left], weight[left], alive[left], gone[left]
    loss = torch.cat([weight.new_zeros(1), torch.stack(costs).cumsum(0)]).flip(0)
    return torch.stack(removed[::-1]), loss


@MLPS.register("interpolative")
@dataclass(frozen=True)
class Interpolation:
    """Of an MLP, keep hidden units by backward elimination and refit the second layer on them.

    The loss is ``1/2 tr(G E^T C E)`` in nats for an image: C the hidden covariance over weighted tokens, G the second
    moment of the loss gradient at the MLP's output, summed over the tokens of an image.
    """

    damping: float = 1e-4  # of the mean second moment: shrinks the refit towards the weight as it was
    gradient_damping: float = 0.1  # of the mean eigenvalue of G
    sensitivity: float = 0.5  # of a token's weight: how far the loss's gradient decides it

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second", "gradient_second", "sensitive_second"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments) -> Part:
        """weight: (h, d) of the second layer, moments: its statistics."""
        mean, spread, ridge = covariance(moments, self.damping, self.sensitivity)
        root, _ = cholesky_root(moments.mean("gradient_second"), self.gradient_damping)
        order, loss = eliminate(spread, weight @ root)
        return Part(Directions(order, loss), None, spread, mean, weight, ridge)
