"""The size of every unit, from an analysis and a budget: spent by predicted losses, then by measured ones, then counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lowrank_vit.compression.budget import budget_within, out_of_reach
from lowrank_vit.compression.measure import lost
from lowrank_vit.compression.prices import Scale, check_z, scale_of
from lowrank_vit.compression.search import preferred, searched
from lowrank_vit.records.budgets import Budget
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.stages.allocate import Allocator, cheapest, fill, least_cost, total_cost

if TYPE_CHECKING:
    from lowrank_vit.compression.analysis import Analysis


def plan_within(analysis: Analysis, budget: Budget) -> RankPlan:
    """Choose every unit's size so that the whole model keeps within a budget, to within one step where prices are exact.

    Raises ``InputError`` for a budget that no choice meets.
    """
    scale = scale_of(budget.cost, analysis.dense, analysis.setting, analysis.model)
    check_z(scale, analysis.recipe.compensation)
    planner = Planner(analysis, budget, scale, scale.priced(analysis.choices, analysis.decomposed))
    return planner.plan()


@dataclass(frozen=True)
class Planner:
    """Plan sizes from an analysis, a budget, how its cost is counted, and the curves in its prices."""

    analysis: Analysis
    budget: Budget
    scale: Scale
    curves: Sequence[ErrorCurve]

    def plan(self) -> RankPlan:
        """Choose the sizes."""
        analysis, measured = self.analysis, self.analysis.recipe.measured
        units = budget_within(self.curves, analysis.recipe, self.budget, self.scale)
        curves, plan = self.curves, self._allocate(self.curves, units)
        points: dict[str, list[tuple[int, float]]] = {curve.name: [] for curve in curves}
        for _ in range(0 if measured is None else measured.rounds):
            assert measured is not None
            with analysis.watch("measure"):
                measure = partial(analysis.measure, plan, analysis.images.each(), measured.images)
                for name, point in analysis.phases.of(dict(plan.ranks))("measure", measure).items():
                    points[name].append(point)
            curves = [measured(curve, points[curve.name]) for curve in self.curves]
            plan = self._allocate(curves, units)
        if analysis.recipe.search is not None:
            curves = searched(analysis, analysis.recipe.search, curves, units)
            plan = self._allocate(curves, units)
        steps: list[dict[str, float | int | str]] = [
            {"part": curve.name, "kept": count, "predicted_loss": curve.error(count), "measured_loss": loss}
            for curve in self.curves
            for count, loss in points[curve.name]
        ]
        plan, counted = self._kept(curves, plan)
        return replace(plan, measured=tuple(steps), budget=self._entry(plan, counted, curves))

    def _allocate(self, curves: Sequence[ErrorCurve], units: int) -> RankPlan:
        """Spend ``units``, what all units may cost together, by the losses of ``curves``."""
        allocator = self._allocator(units)
        with self.analysis.watch("allocate"):
            plan = allocator(curves, units)
        if self.analysis.recipe.search is None:
            return plan
        return replace(plan, ranks=fill(self.curves, dict(plan.ranks), units))  # a search knows some sizes only

    def _allocator(self, units: int) -> Allocator:
        """Return the recipe's allocator, fitted to the model where it asks what a whole smaller model loses."""
        allocator, sense = self.analysis.recipe.allocator, self.analysis.recipe.sense
        fitted = getattr(allocator, "fitted", None)
        if fitted is None or sense is None:
            return allocator
        found: Allocator = fitted(self.curves, units, partial(lost, self.analysis, sense))
        return found

    def _kept(self, curves: Sequence[ErrorCurve], plan: RankPlan) -> tuple[RankPlan, int]:
        """Plan again with less while the model misses its budget; return the plan, and its model's cost."""
        limit, left = self.budget.limit(self.scale.dense), self.scale.corrections
        counted = self._counted(plan)
        while left > 0 and self.scale.misses(counted, limit):
            units, left = total_cost(curves, plan.ranks) - math.ceil(counted - limit), left - 1
            if units < least_cost(curves):
                least = self._counted(RankPlan({curve.name: cheapest(curve) for curve in curves}))
                raise out_of_reach(self.budget, self.analysis.recipe, least, self.scale.dense)
            plan = self._allocate(curves, units)
            counted = self._counted(plan)
        return plan, counted

    def _predicted(self, plan: RankPlan) -> int:
        """Return the whole model's cost as the prices predict it."""
        return self.scale.rest(self.curves) + total_cost(self.curves, plan.ranks)

    def _counted(self, plan: RankPlan) -> int:
        """Return the whole model's cost, counted; a sketch has no Z, so with a Z the prices have to do."""
        if not self.scale.corrections or self.analysis.recipe.compensation is not None:
            return self._predicted(plan)
        with self.analysis.watch("count"):
            return self.scale.count(self.analysis.sketch(plan))

    def _entry(self, plan: RankPlan, counted: int, curves: Sequence[ErrorCurve]) -> BudgetEntry:
        dense, search = self.scale.dense, self.analysis.recipe.search
        entry: BudgetEntry = {
            "cost": self.budget.cost,
            "asked": str(self.budget),
            "dense": dense,
            "limit": int(self.budget.limit(dense)),
            "predicted": self._predicted(plan),
            "counted": counted,
            "where": self.scale.where,
        }
        return entry if search is None else {**entry, "preferred": self._predicted(preferred(curves))}
