"""The size of every unit, from a case and a budget: spent by predicted losses, then by measured ones, then counted."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lowrank_vit.compression.budget import budget_within, out_of_reach, priced
from lowrank_vit.compression.case import Case
from lowrank_vit.compression.cut import resized
from lowrank_vit.compression.measure import loss_of_plan, preferred, search_sizes
from lowrank_vit.compression.prices import Price, check_z, price_of
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.records.budgets import Budget
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.stages.allocate import Allocator, cheapest, fill, least_cost, total_cost

logger = logging.getLogger(__name__)
Measure = Callable[[RankPlan, Iterable[Tensor], int, ResumeStore], dict[str, tuple[int, float]]]


def planner_within(
    case: Case, budget: Budget, losses: Sequence[ErrorCurve], measure: Measure, *, pivoted: bool
) -> "Planner":
    """Return what chooses every unit's size so that the whole model keeps within a budget, to within one step of its price.

    ``losses``: the curves to choose from; ``measure`` returns the losses of all units at a plan's sizes, on some images.
    ``pivoted``: whether factors will be.
    Raises ``InputError`` for a budget that no choice meets.
    """
    price = price_of(budget.cost, case.dense, case.setting, case.model)
    check_z(price, case.recipe.compensation)
    curves = priced(case.recipe, price, losses, case.decomposed, pivoted=pivoted)
    return Planner(case, budget, price, curves, measure, pivoted)


@dataclass(frozen=True)
class Planner:
    """Plan sizes for a case, a budget, how its cost is counted, and the curves in its prices.

    ``pivoted``: whether factors will be.
    """

    case: Case
    budget: Budget
    price: Price
    curves: Sequence[ErrorCurve]
    measure: Measure
    pivoted: bool = False

    @property
    def units(self) -> int:
        """Return what all units may cost together. Raises ``InputError`` for a budget that is out of reach."""
        return budget_within(self.curves, self.case.recipe, self.budget, self.price)

    def plan(self) -> RankPlan:
        """Choose the sizes."""
        case, measured = self.case, self.case.recipe.measured
        units = self.units
        curves, plan = self.curves, self._allocate(self.curves, units)
        points: dict[str, list[tuple[int, float]]] = {curve.name: [] for curve in curves}
        for _ in range(0 if measured is None else measured.rounds):
            assert measured is not None
            with case.services.watch("measure"):
                store = case.services.store.keyed_by(dict(plan.ranks))
                measure = partial(self.measure, plan, case.images.each(), measured.images, store)
                for name, point in store("measure", measure).items():
                    points[name].append(point)
            curves = [measured(curve, points[curve.name]) for curve in self.curves]
            plan = self._allocate(curves, units)
        if case.recipe.search is not None:
            curves = search_sizes(case, case.recipe.search, curves, units)
            plan = self._allocate(curves, units)
        steps: list[dict[str, float | int | str]] = [
            {"part": curve.name, "kept": count, "predicted_loss": curve.error(count), "measured_loss": loss}
            for curve in self.curves
            for count, loss in points[curve.name]
        ]
        plan, counts = self._kept(curves, plan)
        entry = self._entry(plan, counts, curves)
        return replace(plan, measured=tuple(steps), budget=entry, pivoted=self.pivoted)

    def _allocate(self, curves: Sequence[ErrorCurve], units: int) -> RankPlan:
        """Spend ``units``, what all units may cost together, by the losses of ``curves``."""
        allocator = self._allocator(units)
        with self.case.services.watch("allocate"):
            plan = allocator(curves, units)
        if self.case.recipe.search is None:
            return plan
        return replace(plan, ranks=fill(self.curves, dict(plan.ranks), units))  # a search knows some sizes only

    def _allocator(self, units: int) -> Allocator:
        """Return the recipe's allocator, fitted to the model where it asks what a whole smaller model loses."""
        allocator, sense = self.case.recipe.allocator, self.case.recipe.sense
        fitted = getattr(allocator, "fitted", None)
        if fitted is None or sense is None:
            return allocator
        found: Allocator = fitted(self.curves, units, partial(loss_of_plan, self.case, sense))
        return found

    def _kept(self, curves: Sequence[ErrorCurve], plan: RankPlan) -> tuple[RankPlan, list[int]]:
        """Plan again with less, or more, while the model misses its budget; return the plan, and its model's cost, by budget.

        Where costs are measured, the last plan may miss it, too: then the most expensive of those within the budget counts.
        """
        limit, left = self.budget.limit(self.price.dense), self.price.corrections
        counted, within = self.counted(plan), list[tuple[int, RankPlan]]()
        while left > 0 and self.price.misses(counted, limit):
            within += [(counted, plan)] if counted <= limit else []
            units, left = total_cost(curves, plan.ranks) - math.ceil(counted - limit), left - 1
            if units < least_cost(curves) and within:
                break
            if units < least_cost(curves):
                least = self.counted(RankPlan({curve.name: cheapest(curve) for curve in curves}))
                raise out_of_reach(self.budget, self.case.recipe, least, self.price.dense)
            plan = self._allocate(curves, units)
            counted = self.counted(plan)
        if counted > limit and within:
            counted, plan = max(within, key=lambda one: one[0])
        if self.price.corrections and counted > limit:
            logger.warning("the smaller model takes %.1f %% more than its budget", 100 * (counted / limit - 1))
        return plan, [counted]

    def _predicted(self, plan: RankPlan) -> int:
        """Return the whole model's cost as the prices predict it."""
        return self.price.rest(self.curves) + total_cost(self.curves, plan.ranks)

    def counted(self, plan: RankPlan) -> int:
        """Return the whole model's cost, counted; a resized model has no Z, so with a Z the prices have to do."""
        if not self.price.corrections or self.case.recipe.compensation is not None:
            return self._predicted(plan)
        with self.case.services.watch("count"):
            return self.price.count(resized(self.case, replace(plan, pivoted=self.pivoted)))

    def _entry(self, plan: RankPlan, counts: Sequence[int], curves: Sequence[ErrorCurve]) -> BudgetEntry:
        dense, search = self.price.dense, self.case.recipe.search
        entry: BudgetEntry = {
            "cost": self.budget.cost,
            "asked": str(self.budget),
            "dense": dense,
            "limit": int(self.budget.limit(dense)),
            "predicted": self._predicted(plan),
            "counted": counts[0],
            "where": self.price.where,
        }
        return entry if search is None else {**entry, "preferred": self._predicted(preferred(curves))}
