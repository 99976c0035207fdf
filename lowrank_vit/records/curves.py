"""What every size of a unit costs and loses, and the plan that an allocator makes of it."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lowrank_vit.records.costs import COSTS, NOTHING, PARAMETERS, Cost
from lowrank_vit.records.report import BudgetEntry


@dataclass(frozen=True)
class ErrorCurve:
    """Hold what every choice for one unit costs and loses: sizes (ranks) 0 ... k, or dense.

    ``errors[r]`` is the loss at rank r; the dense choice loses nothing and costs ``dense``; rank r costs
    ``fixed + r * unit`` (``fixed``: parameters of Z, a bias that has to be added), less ``saved[r]`` parameters of
    identities in pivoted factors, where there are any. An allocator sees these costs as plain numbers of the kind that
    ``price`` names, or those of ``table`` where costs are no line, as times are. ``least``: no smaller rank may be chosen,
    as the loss is not known there.
    """

    name: str
    errors: Tensor  # shape: (k + 1,)
    unit: Cost
    dense: Cost
    fixed: Cost = NOTHING
    multiple: int = 1
    full_rank: int | None = None  # of the weight, where the curve ends before it because the statistics cap the rank
    price: str = PARAMETERS  # the kind of cost that the budget is in
    saved: tuple[int, ...] = ()  # parameters, at every rank; or nothing
    table: tuple[int, ...] | None = None  # costs of ranks 0 ... k, rising, and of the dense choice
    least: int = 1

    @cached_property
    def rank_cost(self) -> int:
        """Return the cost of one more rank; of a table, on average."""
        if self.table is not None:
            return max(1, (self.table[-2] - self.table[0]) // max(1, len(self.table) - 2))
        return COSTS.get(self.price)(self.unit)

    @cached_property
    def dense_cost(self) -> int:
        return self.table[-1] if self.table is not None else COSTS.get(self.price)(self.dense)

    @cached_property
    def fixed_cost(self) -> int:
        """Return the cost that every choice but the dense one has besides its ranks."""
        return self.table[0] if self.table is not None else COSTS.get(self.price)(self.fixed)

    def cost(self, rank: int | None) -> int:
        """Return the cost at ``rank``; ``None`` is dense."""
        if self.table is not None:
            return self.table[-1 if rank is None else min(rank, len(self.table) - 2)]
        if rank is None:
            return self.dense_cost
        return self.fixed_cost + rank * self.rank_cost - (self._savings[rank] if self.saved else 0)

    def error(self, rank: int | None) -> float:
        """Return the loss at ``rank``; ``None`` is dense. Beyond the last direction nothing more is gained."""
        return 0.0 if rank is None else self._values[min(rank, len(self._values) - 1)]

    @cached_property
    def _savings(self) -> list[int]:
        """Return what identities save at every rank, in the budget's kind of cost."""
        return [COSTS.get(self.price)(Cost(parameters)) for parameters in self.saved]

    @cached_property
    def break_even(self) -> int:
        """Return the largest rank that is cheaper than dense, whether or not the curve has it."""
        if self.table is not None:
            return bisect_left(self.table[:-1], self.dense_cost) - 1
        if not self.saved:
            return (self.dense_cost - self.fixed_cost - 1) // self.rank_cost
        return max((rank for rank in range(len(self.saved)) if self.cost(rank) < self.dense_cost), default=0)

    @cached_property
    def _values(self) -> list[float]:
        """Return the errors as plain numbers: allocators read tens of thousands of them."""
        return self.errors.tolist()

    @property
    def ranks(self) -> range:
        """Return the ranks worth considering: multiples of ``multiple``, from ``least`` on, cheaper than dense."""
        largest = min(self.break_even, len(self.errors) - 1)
        smallest = min(self.multiple * -(-self.least // self.multiple), largest)
        return range(smallest, largest + 1, self.multiple) if largest >= 1 else range(0)


@dataclass(frozen=True)
class RankPlan:
    """Hold the size of every unit (``None``: stays dense), and the steps that led there where an allocator records them.

    ``measured``: predicted and measured losses of units, where the plan was corrected by them. ``budget``: what it was
    made for, as the report has it; None for a plan that was made by hand. ``pivoted``: whether factors are to be pivoted;
    None: as the recipe says.
    """

    ranks: Mapping[str, int | None]
    trajectory: tuple[Mapping[str, float | int | str], ...] = ()
    measured: tuple[Mapping[str, float | int | str], ...] = ()
    budget: BudgetEntry | None = None
    pivoted: bool | None = None
