"""Sparse Z: the diagonal, whole rows or columns, entries anywhere."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import Replacement
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.compensate import COMPENSATIONS, State, check_budget, share
from lowrank_vit.stages.compensate.support import FixedSupport, solve_semidefinite, solve_support


class DiagonalCorrection(Replacement):
    """Scale the first min(n, d) inputs; pad with zeros where d is larger."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.config = {"kind": "diagonal", "in_features": in_features, "out_features": out_features}
        self.out_features = out_features
        self.values = nn.Parameter(torch.zeros(min(in_features, out_features)))

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.values)
        return F.pad(x[..., :count] * self.values, (0, self.out_features - count))


@COMPENSATIONS.register("diagonal")
@storable
@dataclass(frozen=True)
class Diagonal(FixedSupport):
    """Fit entries (i, i), i < min(n, d): the paper's diagonal Z, which it leaves undefined for n != d.

    Column j has one entry, so the minimiser of (10) is ``z_j = (M R)_jj / M_jj``.
    """

    budget: float = 0.05  # no effect, as there is nothing to choose; all kinds have this field

    kind: ClassVar[str] = "diagonal"
    module_type: ClassVar[type[nn.Module]] = DiagonalCorrection

    def parameter_count(self, n: int, d: int) -> int:
        return min(n, d)

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return the diagonal's flat positions, (L, min(n, d)), whatever M and R are."""
        count, n, d = residual.shape
        positions = torch.arange(min(n, d), device=residual.device) * (d + 1)
        return {"positions": positions.repeat(count, 1)}

    def module(self, state: State, index: int) -> DiagonalCorrection:
        module = DiagonalCorrection(*state.shape)
        module.values.data = state.trainable["entries"][index].detach().clone()
        return module


class StructuredCorrection(Replacement):
    """Map some inputs to all outputs (``axis="rows"``), or all inputs to some outputs (``axis="columns"``)."""

    index: Tensor

    def __init__(self, in_features: int, out_features: int, axis: str, count: int) -> None:
        super().__init__()
        self.config = {"kind": "structured_sparse", "in_features": in_features, "out_features": out_features}
        self.config |= {"axis": axis, "count": count}
        self.out_features, self.axis = out_features, axis
        self.values = nn.Parameter(torch.zeros(count, out_features if axis == "rows" else in_features))
        self.register_buffer("index", torch.zeros(count, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.axis == "rows":
            return x.index_select(-1, self.index) @ self.values
        y = F.linear(x, self.values)
        return y.new_zeros(*y.shape[:-1], self.out_features).index_copy(-1, self.index.long(), y)


@COMPENSATIONS.register("structured_sparse")
@storable
@dataclass(frozen=True)
class StructuredSparse(FixedSupport):
    """Fit whole rows or whole columns of Z, whichever lowers (10) more in a layer: the paper's structured sparse Z.

    Both axes get the same number of values, so that the count does not depend on the data: ``t n / c`` rows or
    ``t d / c`` columns, ``c = gcd(n, d)``, ``t = floor(budget * c)``. Where t is 0 (n and d share no large
    enough divisor), the axis that fits the budget best is taken, with at least one row or column.

    The best columns are those of the largest ``(R^T M R)_jj`` (exact: a free column loses nothing). Rows are picked one
    by one, each the one that lowers (10) most given those before it (orthogonal least squares).
    """

    budget: float = 0.05  # share of the layer's weight parameters

    kind: ClassVar[str] = "structured_sparse"
    module_type: ClassVar[type[nn.Module]] = StructuredCorrection

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def counts(self, n: int, d: int) -> tuple[int, int]:
        """Return the number of rows and of columns; 0 where that axis is not possible."""
        common = math.gcd(n, d)
        times = share(self.budget, common)
        if times:
            return times * n // common, times * d // common
        rows, columns = share(self.budget, n), share(self.budget, d)
        if not rows and not columns:
            return (1, 0) if d <= n else (0, 1)
        return (rows, 0) if rows * d >= columns * n else (0, columns)

    def parameter_count(self, n: int, d: int) -> int:
        """Count the values of the rows or columns; their indices do not count."""
        rows, columns = self.counts(n, d)
        return rows * d or columns * n

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return flat positions, (L, k), row by row or column by column, and ``by_rows``, (L,)."""
        _, n, d = residual.shape
        row_count, column_count = self.counts(n, d)
        rows, row_gain = _best_rows(residual, moment, row_count)
        gains, columns = (residual * (moment @ residual)).sum(1).topk(column_count)
        along_rows = rows.sort(1).values[:, :, None] * d + torch.arange(d, device=rows.device)
        along_columns = columns.sort(1).values[:, :, None] + torch.arange(n, device=rows.device) * d
        by_rows = row_gain > gains.sum(1)
        if not row_count or not column_count:
            by_rows = torch.full_like(by_rows, bool(row_count))
        chosen = [(along_rows if axis else along_columns)[i].flatten() for i, axis in enumerate(by_rows.tolist())]
        return {"positions": torch.stack(chosen), "by_rows": by_rows}

    def closed_form(self, residual: Tensor, moment: Tensor) -> State:
        """Copy free columns from the residual; solve ``M_SS Z_S = (M R)_S`` for free rows S, one system for all columns."""
        _, n, d = residual.shape
        fixed = self.support(residual, moment)
        values = residual.flatten(1).gather(1, fixed["positions"])
        for index in fixed["by_rows"].nonzero()[:, 0].tolist():
            rows = fixed["positions"][index, ::d] // d
            matrix = moment[index]
            scale = matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
            target = matrix[rows] @ residual[index]
            values[index] = solve_semidefinite(matrix[rows][None, :, rows], target[None], scale).flatten()
        return State((n, d), {"entries": values}, fixed)

    def module(self, state: State, index: int) -> StructuredCorrection:
        n, d = state.shape
        by_rows = bool(state.fixed["by_rows"][index])
        values = state.trainable["entries"][index].detach().view(-1, d if by_rows else n)
        first = state.fixed["positions"][index].view_as(values)[:, 0]
        module = StructuredCorrection(n, d, "rows" if by_rows else "columns", len(values))
        module.values.data = values.clone()
        module.index = (first // d if by_rows else first).int()
        return module


def _best_rows(residual: Tensor, moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` rows greedily, (L, count); return them and by how much they lower (10) together, (L,).

    This is a pivoted Cholesky factorisation of M, applied to ``M R`` as well: with S taken, ``spread_i`` is what S
    does not explain of input i, and row i would lower the loss by ``||(M (R - Z))_i||^2 / spread_i``.
    """
    layers = torch.arange(len(residual), device=residual.device)
    spread, gradient = moment.diagonal(dim1=1, dim2=2).clone(), moment @ residual
    floor = 1e-10 * spread.mean(1, keepdim=True).clamp_min(torch.finfo(moment.dtype).tiny)
    factor = moment.new_zeros(*moment.shape[:2], count)
    rows = torch.zeros(len(residual), count, dtype=torch.int64, device=residual.device)
    total = moment.new_zeros(len(residual))
    for step in range(count):
        safe = spread.where(spread > floor, torch.inf)  # explained already: no gain and no direction
        gain = gradient.square().sum(2) / safe
        row = gain.scatter(1, rows[:, :step], -1.0).argmax(1)
        column = moment[layers, :, row] - (factor @ factor[layers, row, :, None])[..., 0]
        pivot = safe[layers, row, None].sqrt()
        factor[:, :, step] = column / pivot
        gradient = gradient - factor[:, :, step, None] * (gradient[layers, row] / pivot)[:, None, :]
        spread = spread - factor[:, :, step].square()
        total += gain[layers, row]
        rows[:, step] = row
    return rows, total


class UnstructuredCorrection(Replacement):
    """Compute ``x Z``, with Z built from its entries at every call: small to store, as slow as a dense layer."""

    positions: Tensor

    def __init__(self, in_features: int, out_features: int, count: int) -> None:
        super().__init__()
        self.config = {"kind": "unstructured_sparse", "in_features": in_features, "out_features": out_features}
        self.config["count"] = count
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.zeros(count))
        self.register_buffer("positions", torch.zeros(count, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.values.new_zeros(self.in_features * self.out_features)
        return x @ flat.scatter(0, self.positions.long(), self.values).view(self.in_features, self.out_features)


@COMPENSATIONS.register("unstructured_sparse")
@storable
@dataclass(frozen=True)
class UnstructuredSparse(FixedSupport):
    """Fit ``floor(budget * n d)`` entries anywhere, at least 1: the paper's unstructured sparse Z.

    The support is picked greedily in ``rounds``: each takes the entries that, moved alone, would lower (10) most, by
    ``(M (R - Z))_ij^2 / M_ii``, and refits Z on the entries taken so far. One round ignores that inputs are correlated
    (DeiT-Tiny: eight rounds leave 1 to 26% less loss than one).
    """

    budget: float = 0.05  # share of the layer's weight parameters
    rounds: int = 8

    kind: ClassVar[str] = "unstructured_sparse"
    module_type: ClassVar[type[nn.Module]] = UnstructuredCorrection

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def parameter_count(self, n: int, d: int) -> int:
        """Count the entries; their positions do not count."""
        return max(1, share(self.budget, n * d))

    def support(self, residual: Tensor, moment: Tensor) -> dict[str, Tensor]:
        """Return flat positions, (L, k), in increasing order."""
        return {"positions": torch.stack([self._select(*layer) for layer in zip(residual, moment, strict=True)])}

    def _select(self, residual: Tensor, moment: Tensor) -> Tensor:
        """Return the positions of one layer, (k,). residual: (n, d); moment: (n, n)."""
        n, d = residual.shape
        count, target = self.parameter_count(n, d), moment @ residual
        curvature = moment.diagonal()[:, None].clamp_min(torch.finfo(moment.dtype).tiny)
        positions = torch.zeros(0, dtype=torch.int64, device=residual.device)
        z = residual.new_zeros(n * d)
        for step in range(1, self.rounds + 1):
            gain = ((target - moment @ z.view(n, d)).square() / curvature).flatten()
            gain[positions] = -1.0
            new = gain.topk(count * step // self.rounds - len(positions)).indices
            positions = torch.cat([positions, new])
            if step < self.rounds:
                z[positions] = solve_support(moment, target, positions)
        return positions.sort().values

    def module(self, state: State, index: int) -> UnstructuredCorrection:
        values = state.trainable["entries"][index].detach()
        module = UnstructuredCorrection(*state.shape, len(values))
        module.values.data = values.clone()
        module.positions = state.fixed["positions"][index].int()
        return module
