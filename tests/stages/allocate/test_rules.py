"""The exact allocation where there are many choices, and what rounding leaves filled in by the largest gain."""

import numpy as np
import pytest
import torch

from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.allocate import fill
from lowrank_vit.stages.allocate.rules import Knapsack, lower_hull


def straight(name: str, width: int, slope: float) -> ErrorCurve:
    """Every rank of a square layer gains the same, so that none is ruled out before the dynamic programme."""
    return ErrorCurve.in_parameters(name, slope * torch.arange(width, -1, -1, dtype=torch.float64), 2 * width, width**2)


@pytest.mark.parametrize("rank", [128, 200, 255])
def test_a_layer_may_have_more_choices_than_a_byte_counts(rank: int) -> None:
    curve = straight("wide", 512, 1.0)
    assert dict(Knapsack()([curve], curve.cost(rank)).ranks) == {"wide": rank}


@pytest.mark.parametrize("share", [0.4, 0.7, 0.9])
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
    assert dict(Knapsack()([ErrorCurve.in_parameters("x", errors, 10, 35)], 30).ranks) == {"x": 2}


def curve(name: str, errors: list[float], rank_cost: int, dense: int) -> ErrorCurve:
    return ErrorCurve.in_parameters(name, torch.tensor(errors, dtype=torch.float64), rank_cost, dense)


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
