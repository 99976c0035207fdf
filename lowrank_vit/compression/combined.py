"""Several budgets at once: one price made of all costs, weighted so that the sizes that it buys keep within each budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lowrank_vit.compression.budget import budget_within, out_of_reach
from lowrank_vit.compression.plan import Planner
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate import cheapest, least_cost, total_cost

GRAINS = 100_000  # in which a weighted price is rounded: allocators take long over finer ones
ROUNDS = 8  # of changed weights
POWER = 2.0  # of the share used, by which a weight grows
TRIES = 20  # of sizes chosen again with less

Allocate = Callable[[Sequence[ErrorCurve], int], RankPlan]


def within_all(
    curves: Sequence[ErrorCurve], costs: Sequence[Sequence[ErrorCurve]], allowed: Sequence[int], allocate: Allocate
) -> RankPlan:
    """Choose sizes by the losses of ``curves`` that keep within every budget.

    ``costs``: the curves in the prices of each budget; ``allowed``: what all sizes may cost together, by budget.
    A budget that alone leads to sizes within all others is the only one that binds. Otherwise a size is priced by a
    weighted sum of its costs, each as a share of what is allowed; a cost of which more is used than of another gets a
    larger weight. Of all sizes found that keep within every budget, those of least loss are returned.
    """
    found: list[RankPlan] = []

    def used(plan: RankPlan) -> list[float]:
        shares = [total_cost(priced, plan.ranks) / max(1, most) for priced, most in zip(costs, allowed, strict=True)]
        if max(shares) <= 1:
            found.append(plan)
        return shares

    for priced, most in zip(costs, allowed, strict=True):
        plan = allocate([replace(each, errors=curve.errors) for each, curve in zip(priced, curves, strict=True)], most)
        if max(used(plan)) <= 1:
            return plan
    weights = [1 / len(costs)] * len(costs)
    for _ in range(ROUNDS):
        prices = weighted(curves, costs, allowed, weights)
        shares = used(allocate(prices, GRAINS))
        if max(shares) > 1:
            used(allocate(prices, int(GRAINS / max(shares))))
        grown = [weight * share**POWER for weight, share in zip(weights, shares, strict=True)]
        weights = [weight / sum(grown) for weight in grown]
    prices, units = weighted(curves, costs, allowed, weights), float(GRAINS)
    for _ in range(0 if found else TRIES):
        units /= max(1.001, *used(allocate(prices, max(int(units), least_cost(prices)))))
        if found:
            break
    found = found or [RankPlan({curve.name: cheapest(curve) for curve in curves})]
    return min(found, key=lambda plan: sum(curve.error(plan.ranks[curve.name]) for curve in curves))


def weighted(
    curves: Sequence[ErrorCurve],
    costs: Sequence[Sequence[ErrorCurve]],
    allowed: Sequence[int],
    weights: Sequence[float],
) -> list[ErrorCurve]:
    """Return the curves with the weighted sum of their costs, each as a share of what is allowed, in grains."""
    factors = [GRAINS * weight / max(1, most) for weight, most in zip(weights, allowed, strict=True)]
    priced = []
    for curve, *own in zip(curves, *costs, strict=True):
        choices = [*range(len(curve.errors)), None]
        sums = [sum(factor * each.cost(size) for factor, each in zip(factors, own, strict=True)) for size in choices]
        priced.append(replace(curve, table=tuple(math.ceil(cost) for cost in sums)))
    return priced


@dataclass(frozen=True)
class CombinedPlanner(Planner):
    """Plan sizes for several budgets; ``singles``: a planner for each, with the curves in its prices."""

    singles: Sequence[Planner] = ()

    @classmethod
    def of(cls, singles: Sequence[Planner]) -> Planner:
        """Make the planner of several budgets; those that the dense model meets already do not bind."""
        binding = [each for each in singles if each.budget.limit(each.price.dense) < each.price.dense] or singles[:1]
        first = binding[0]
        if len(binding) == 1:
            return first
        if first.case.recipe.search is not None:
            raise InputError("a search has one budget: give one, or another recipe")
        return cls(first.case, first.budget, first.price, first.curves, first.measure, first.pivoted, binding)

    @property
    def units(self) -> int:
        return self.allowed[0]

    @cached_property
    def allowed(self) -> list[int]:
        """Return what all units may cost together, by budget. Raises ``InputError`` for one that is out of reach."""
        return [budget_within(each.curves, self.case.recipe, each.budget, each.price) for each in self.singles]

    def _allocate(self, curves: Sequence[ErrorCurve], units: int) -> RankPlan:
        return self._spend(curves, self.allowed)

    def _spend(self, curves: Sequence[ErrorCurve], allowed: Sequence[int]) -> RankPlan:
        with self.case.services.watch("allocate"):
            return within_all(curves, [each.curves for each in self.singles], allowed, self._allocator(self.units))

    def _kept(self, curves: Sequence[ErrorCurve], plan: RankPlan) -> tuple[RankPlan, list[int]]:
        """Plan again with less of each cost of which the model takes more than its budget."""
        allowed, left = list(self.allowed), [each.price.corrections for each in self.singles]
        while True:
            counts, again = [each.counted(plan) for each in self.singles], False
            for index, (each, count) in enumerate(zip(self.singles, counts, strict=True)):
                limit = each.budget.limit(each.price.dense)
                if left[index] <= 0 or count <= limit or not each.price.misses(count, limit):
                    continue
                allowed[index], again = total_cost(each.curves, plan.ranks) - math.ceil(count - limit), True
                left[index] -= 1
                if allowed[index] < least_cost(each.curves):
                    raise out_of_reach(each.budget, self.case.recipe, count, each.price.dense)
            if not again:
                return plan, counts
            plan = self._spend(curves, allowed)

    def _entry(self, plan: RankPlan, counts: Sequence[int], curves: Sequence[ErrorCurve]) -> BudgetEntry:
        first, *others = (each._entry(plan, [count], curves) for each, count in zip(self.singles, counts, strict=True))
        return {**first, "also": others}
