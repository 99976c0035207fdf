"""The exact allocation of many choices, what rounding leaves filled by the largest gain, one threshold on all errors."""

import numpy as np
import pytest
import torch

from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import fill, total_cost
from lowrank_vit.stages.allocate.rules import EqualError, Knapsack, Uniform, lower_hull


def straight(name: str, width: int, slope: float) -> ErrorCurve:
    """Every rank of a square layer gains the same, so that none is ruled out before the dynamic programme."""
    errors = slope * torch.arange(width, -1, -1, dtype=torch.float64)
    return ErrorCurve(name, errors, Cost(2 * width), Cost(width**2))


def test_a_layer_may_have_more_choices_than_a_byte_counts() -> None:
    curve = straight("wide", 512, 1.0)
    for rank in (128, 200, 255):
        assert dict(Knapsack()([curve], curve.cost(rank)).ranks) == {"wide": rank}


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_two_such_layers_are_allotted_as_by_trying_everything(share: float) -> None:
    curves = [straight("wide", 512, 1.0), straight("steep", 400, 1.5)]
    budget = int(share * sum(curve.dense_cost for curve in curves))
    choices = [[*curve.ranks, None] for curve in curves]
    costs, errors = (
        [np.array([value(curve, rank) for rank in own]) for curve, own in zip(curves, choices, strict=True)]
        for value in (ErrorCurve.cost, ErrorCurve.error)
    )
    affordable = costs[0][:, None] + costs[1] <= budget
    least = np.where(affordable, errors[0][:, None] + errors[1], np.inf).min()
    plan = Knapsack()(curves, budget).ranks
    assert sum(curve.cost(plan[curve.name]) for curve in curves) <= budget
    assert sum(curve.error(plan[curve.name]) for curve in curves) == pytest.approx(least)


def test_of_choices_that_lose_the_same_the_cheapest_is_taken() -> None:
    """From rank 2 on nothing is lost: rank 2 costs 20, rank 3 costs 30, dense costs 35, and the budget allows 30."""
    errors = torch.tensor([4.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert dict(Knapsack()([ErrorCurve("x", errors, Cost(10), Cost(35))], 30).ranks) == {"x": 2}


def curve(name: str, errors: list[float], rank_cost: int, dense: int) -> ErrorCurve:
    return ErrorCurve(name, torch.tensor(errors, dtype=torch.float64), Cost(rank_cost), Cost(dense))


def test_the_largest_gain_for_a_parameter_comes_first() -> None:
    """A step of "a" gains 6 for 6 parameters, one of "b" 4 for 2: of 6 that are left "b" takes 2, too much for "a"."""
    curves = [curve("a", [20, 10, 4], 6, 100), curve("b", [20, 10, 6], 2, 100)]
    assert fill(curves, {"a": 1, "b": 1}, 8 + 6) == {"a": 1, "b": 2}
    assert fill(curves, {"a": 1, "b": 1}, 8 + 8) == {"a": 2, "b": 2}  # both, to the last parameter
    assert fill(curves, {"a": 1, "b": 1}, 8 + 1) == {"a": 1, "b": 1}


def test_the_hull_of_a_curve() -> None:
    """Of the points (1, 8), (2, 7), (3, 2), (4, 1) and dense, (6, 0), the second lies above the line to the third."""
    hull = lower_hull(curve("x", [9, 8, 7, 2, 1], 1, 6))
    assert [(cost, error) for cost, error, _ in hull] == [(1, 8), (3, 2), (4, 1), (6, 0)]


def steps(name: str, errors: list[float]) -> ErrorCurve:
    """A rank costs 10, the dense layer 100."""
    return curve(name, errors, 10, 100)


FALLING = [9.0, 8, 7, 6, 5, 4, 3, 2, 1]


def test_the_threshold_that_meets_the_budget_by_hand() -> None:
    """At most 6: ranks 3 of A and 1 of B; at most 5: 4 and 2, 60 in all, the budget of 65, of which 5 buy nothing."""
    a, b = steps("a", FALLING), steps("b", [10.0, 6, 5, 4, 3, 2, 1, 1, 1])
    plan = EqualError()([a, b], 65)
    assert dict(plan.ranks) == {"a": 4, "b": 2}


def test_a_given_threshold_is_scaled_by_hand() -> None:
    """At most 5: ranks 4 and 2. Twice as much in all, 120: 8 and 4. C, never so good, stays dense and takes its 100."""
    a, b = steps("a", FALLING), steps("b", [10.0, 6, 5, 4, 3, 2, 1, 1, 1])
    assert dict(EqualError(threshold=5)([a, b], 120).ranks) == {"a": 8, "b": 4}
    c = steps("c", [20.0] * 9)
    assert dict(EqualError(threshold=5)([a, b, c], 220).ranks) == {"a": 8, "b": 4, "c": None}
    tight = EqualError(threshold=5)([a, b, c], 70)  # dense alone costs too much: cut from its largest rank, 8, on
    assert total_cost([a, b, c], tight.ranks) <= 70
    assert tight.ranks["c"] is not None
    assert tight.ranks["c"] >= tight.ranks["a"] >= tight.ranks["b"]  # type: ignore[operator]


def test_equal_curves_get_uniform_ranks() -> None:
    curves = [steps(name, FALLING) for name in "abc"]
    for budget, threshold in ((60, None), (150, 2.5), (231, None)):
        assert EqualError(threshold)(curves, budget).ranks == Uniform()(curves, budget).ranks


def test_the_threshold_of_uniform_ranks() -> None:
    """A model that loses 6 with uniform ranks has a threshold of 6 / 3; another allocator, or one given, stays."""
    curves, seen = [steps(name, FALLING) for name in "abc"], list[RankPlan]()

    def lost(plan: RankPlan) -> float:
        seen.append(plan)
        return 6.0

    assert EqualError(from_uniform=True).fitted(curves, 150, lost).threshold == 2
    assert seen[0].ranks == Uniform()(curves, 150).ranks
    assert EqualError().fitted(curves, 150, lost).threshold is None
    assert EqualError(threshold=1, from_uniform=True).fitted(curves, 150, lost).threshold == 1
    assert len(seen) == 1


def test_ranks_are_multiples_after_scaling() -> None:
    errors = torch.arange(16, -1, -1, dtype=torch.float64)
    curves = [ErrorCurve(name, errors, Cost(10), Cost(160), multiple=4) for name in "ab"]
    for threshold in (None, 1.0, 7.0):
        plan = EqualError(threshold)(curves, 130)
        assert all(rank is not None and rank % 4 == 0 for rank in plan.ranks.values())
        assert total_cost(curves, plan.ranks) <= 130
