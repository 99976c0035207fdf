"""Weights as mixtures of all sizes that a unit may have, differentiable in the sizes' shares.

Of nested truncations the mixture is a gate on each direction: ``sum_a p_a U_a V_a^T = U diag(g) V^T``, with U_a and V_a the
first r_a columns and ``g_k = sum of p_a over r_a > k`` (COMCAT, Xiao et al., ICML 2023, equation 5, where every candidate
is a matrix of its own). Where each size has a refitted weight, the weights are mixed as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# parameters of the dense model by name, each as a function of the shares of the sizes, (a,)
Mixture = Mapping[str, Callable[[Tensor], Tensor]]


def first_kept(sizes: Sequence[int | None], count: int) -> Tensor:
    """Return which of ``count`` ordered directions each size keeps, 0 or 1, (a, count); ``None`` keeps all."""
    kept = torch.tensor([count if size is None else size for size in sizes])
    return (torch.arange(count) < kept[:, None]).double()


@dataclass(frozen=True)
class Gated:
    """Mix nested truncations of a weight: ``V diag(g) U^T``, (d, n), as layers store it."""

    u: Tensor  # shape: (n, k)
    v: Tensor  # shape: (d, k)
    kept: Tensor  # shape: (a, k)

    def __call__(self, shares: Tensor) -> Tensor:
        return (self.v * (shares @ self.kept)) @ self.u.T


@dataclass(frozen=True)
class Mixed:
    """Mix the values of a tensor that has another value at every size."""

    values: Tensor  # shape: (a, ...)

    def __call__(self, shares: Tensor) -> Tensor:
        return torch.tensordot(shares, self.values, 1)


@dataclass(frozen=True)
class MixedQueries:
    """Mix the query rows of a layer whose heads compare ``q^T B k`` instead of ``q^T k``; all other rows stay.

    The logits are linear in B, so that those of a mixture are the mixture of the logits.
    """

    layer: Tensor  # shape: (rows,) or (rows, n): a bias, or a weight as layers store it; the queries come first
    matrices: Tensor  # shape: (a, h, s, s), B of every size and head

    def __call__(self, shares: Tensor) -> Tensor:
        heads, width = self.matrices.shape[1:3]
        queries, others = self.layer.tensor_split([heads * width])
        mixed = torch.tensordot(shares, self.matrices, 1)
        rows = mixed.mT @ queries.reshape(heads, width, -1)
        return torch.cat([rows.reshape(queries.shape), others])
