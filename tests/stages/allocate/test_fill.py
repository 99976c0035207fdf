"""What is left of a budget, spent step by step: worked by hand."""

import torch

from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.allocate import fill
from lowrank_vit.stages.allocate.rules import lower_hull


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
