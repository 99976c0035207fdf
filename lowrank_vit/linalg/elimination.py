"""Column-subset approximation: keep some of a layer's inputs, refit its weight on them.

Of ``y = h W + b``, h: hidden units (or the directions of all heads' values), only a subset S is kept, and W is refitted
by least squares on the hidden covariance C; the mean of what is lost goes into the bias. A subset commutes with the
activation function, so the units that are left out need not be computed at all: saving starts with the first one.
"""

import torch
from torch import Tensor

from lowrank_vit.linalg.metric import about_mean, cholesky_root
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.moments import Moments

COMPACT = 64  # removals between two compactions of the matrices


def covariance(moments: Moments, damping: float = 0.0, sensitivity: float = 0.0) -> tuple[Tensor, Tensor, float]:
    """Compute the mean (n,) of a layer's input, its covariance (n, n) with a ridge on the diagonal, and the ridge.

    The ridge is ``damping`` relative to the mean second moment, or more if a sound factorisation needs it.
    A token weighs ``1 - sensitivity``, plus ``sensitivity`` times its share of the loss's squared gradient: what is fitted
    is then the output at the tokens that the loss depends on (in a last block, the class token alone).
    """
    second, mean = moments.mean("input_second"), moments.mean("input_sum")
    if sensitivity:
        second = torch.lerp(second, moments.mean("sensitive_second"), sensitivity)
        mean = torch.lerp(mean, moments.mean("sensitive_input_sum"), sensitivity)
    scale = second.diagonal().mean().clamp_min(1e-30)
    spread = about_mean(second, mean)
    _, ridge = cholesky_root(spread, damping, scale)
    return mean, spread + ridge * scale * torch.eye(len(mean), dtype=mean.dtype, device=mean.device), ridge


def oracle_shrinkage(covariance: Tensor, examples: int) -> float:
    """Return the intensity of the oracle approximating shrinkage towards a multiple of the identity (Chen et al. 2010).

    covariance: (p, p), of ``examples`` vectors. 1 where nothing tells it from that multiple.
    """
    p, trace, square = len(covariance), float(covariance.trace()), float(covariance.square().sum())
    above = (1 - 2 / p) * square + trace**2
    below = (examples + 1 - 2 / p) * (square - trace**2 / p)
    return min(1.0, above / below) if below > 0 else 1.0


def refit(covariance: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """Solve ``argmin_V tr((W - V^)^T C (W - V^))``, V^ being V in the rows ``kept`` and zero elsewhere: ``C_SS^-1 C_S: W``.

    covariance: (k, k), positive definite; weight: (k, d); kept: (s,) indices. Returns (s, d); with all units kept, W.
    """
    root = torch.linalg.cholesky(covariance[kept][:, kept])
    rest = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    rest[kept] = False
    missing = covariance[kept][:, rest] @ weight[rest]
    return weight[kept] + torch.cholesky_solve(missing, root)


def refitted(subset: InputSubset, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Refit the weight of the kept units, (s, d); return it, and the same map as a weight of all inputs, (k, d).

    The mean of what is lost, ``mean @ (W - W^)``, belongs into the bias.
    """
    rows = refit(subset.covariance, subset.weight, kept)
    whole = torch.zeros_like(subset.weight)
    whole[kept] = rows
    return rows, whole if subset.basis is None else torch.block_diag(*subset.basis) @ whole


def eliminate(covariance: Tensor, weight: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Remove the units one by one, each time the one whose removal, after all others are refitted, loses least.

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
        if len(removed) % COMPACT == 0:  # removed units would cost time in every step
            left = ~gone
            inverse, weight, alive, gone = inverse[left][:, left], weight[left], alive[left], gone[left]
    loss = torch.cat([weight.new_zeros(1), torch.stack(costs).cumsum(0)]).flip(0)
    return torch.stack(removed[::-1]), loss
