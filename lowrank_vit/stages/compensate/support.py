"""What the kinds of Z with a fixed support share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lowrank_vit.stages.compensate import State

CHUNK = 2**22  # numbers that the batch of small systems may hold at a time: 32 MB


class FixedSupport(ABC):
    """Fit a Z whose entries at chosen positions are free and whose other entries are zero.

    Its state: ``entries`` (L, k), trainable, and ``positions`` (L, k), flat indices ``i * d + j`` into Z.
    """

    @abstractmethod
    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return the fixed tensors, ``positions`` among them, chosen by M and R alone. (L, n, d), (L, n, n)."""

    @abstractmethod
    def module(self, state: State, index: int) -> nn.Module:
        """Make the deployable module of one layer."""

    def start(self, residual: Tensor, moment: Tensor, seeds: Sequence[int]) -> State:
        """Set all values to zero; the gradient there is not zero, so nothing need be random."""
        fixed = self.support(residual, moment)
        _, n, d = residual.shape
        values = torch.zeros(fixed["positions"].shape, dtype=residual.dtype, device=residual.device)
        return State((n, d), {"entries": values}, fixed)

    def dense(self, state: State) -> Tensor:
        values, positions = state.trainable["entries"], state.fixed["positions"]
        n, d = state.shape
        return values.new_zeros(len(values), n * d).scatter(1, positions, values).view(-1, n, d)

    def product(self, state: State, x: Tensor) -> Tensor:
        return x @ self.dense(state)

    def closed_form(self, residual: Tensor, moment: Tensor) -> State:
        """Solve least squares over the support, column by column of Z, since columns do not interact in (10)."""
        fixed = self.support(residual, moment)
        layers = zip(moment, moment @ residual, fixed["positions"], strict=True)
        values = torch.stack([solve_support(*layer) for layer in layers])
        return State((residual.shape[1], residual.shape[2]), {"entries": values}, fixed)

    def factors(self, state: State, index: int) -> None:
        """Return ``None``: such a Z does not fold into ``U V^T``."""
        return None


def solve_support(moment: Tensor, target: Tensor, positions: Tensor) -> Tensor:
    """Find values, (k,), at ``positions`` that minimise ``tr(Z^T M Z) - 2 tr(Z^T T)``: ``M_SS z_S = T_Sj`` for each column j.

    moment: (n, n); target: (n, d), ``M R``; positions: (k,), flat, each once. Columns of similar size share a batch.
    """
    d = target.shape[1]
    order = (positions % d).argsort(stable=True)
    rows, columns = (positions // d)[order], (positions % d)[order]
    sizes = columns.bincount(minlength=d)
    starts = sizes.cumsum(0) - sizes
    scale = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    values = target.new_zeros(len(positions))
    for chunk in _chunks(sizes):
        step = torch.arange(int(sizes[chunk].max()), device=moment.device)
        used = step < sizes[chunk, None]
        slots = (starts[chunk, None] + step).clamp_max(len(positions) - 1)
        index = rows[slots]
        both = used[:, :, None] & used[:, None, :]
        system = moment[index[:, :, None], index[:, None, :]].where(both, scale * torch.eye(len(step)).to(moment))
        right = target[index, chunk[:, None]] * used
        values[order[slots[used]]] = solve_semidefinite(system, right[..., None], scale)[..., 0][used]
    return values


def _chunks(sizes: Tensor) -> Iterator[Tensor]:
    """Yield the columns that have entries, the fullest first, in batches whose padded systems fit ``CHUNK``."""
    order = sizes.argsort(descending=True, stable=True)
    order = order[sizes[order] > 0]
    while len(order):
        count = max(1, CHUNK // int(sizes[order[0]]) ** 2)
        yield order[:count]
        order = order[count:]


def solve_semidefinite(matrix: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Solve ``matrix^-1 right`` for a batch of semidefinite matrices, singular ones included. (b, s, s), (b, s, k), ().

    A ridge of ``1e-12 * scale`` is added, and raised a hundredfold for the matrices whose factorisation is still not
    sound: where a matrix is singular the solution is not unique, and the ridge picks a short one.
    Raises ``ValueError`` where the matrix is not finite.
    """
    ridge = 1e-12 * scale.expand(len(matrix))
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(8):
        root, failed = torch.linalg.cholesky_ex(matrix + ridge[:, None, None] * identity)
        sound = (failed == 0) & (root.diagonal(dim1=1, dim2=2).square().amin(1) > 1e-13 * scale)
        if sound.all():
            return torch.cholesky_solve(right, root)
        ridge = ridge.where(sound, 100 * ridge)
    raise ValueError("the moment is not positive semidefinite")
