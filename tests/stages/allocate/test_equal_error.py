"""One threshold on all errors: worked by hand, and against uniform ranks where all curves are one."""

import pytest
import torch

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import total_cost
from lowrank_vit.stages.allocate.rules import EqualError, Uniform
from tests.support.cases import in_turn


def curve(name: str, errors: list[float], unit: int = 10, dense: int = 100, multiple: int = 1) -> ErrorCurve:
    return ErrorCurve.in_parameters(name, torch.tensor(errors, dtype=torch.float64), unit, dense, multiple=multiple)


FALLING = [9.0, 8, 7, 6, 5, 4, 3, 2, 1]


def test_the_threshold_that_meets_the_budget_by_hand() -> None:
    """At most 6: ranks 3 of A and 1 of B; at most 5: 4 and 2, 60 in all, the budget of 65, of which 5 buy nothing."""
    a, b = curve("a", FALLING), curve("b", [10.0, 6, 5, 4, 3, 2, 1, 1, 1])
    plan = EqualError()([a, b], 65)
    assert dict(plan.ranks) == {"a": 4, "b": 2}


def test_a_given_threshold_is_scaled_by_hand() -> None:
    """At most 5: ranks 4 and 2. Twice as much in all, 120: 8 and 4. C, never so good, stays dense and takes its 100."""
    a, b = curve("a", FALLING), curve("b", [10.0, 6, 5, 4, 3, 2, 1, 1, 1])
    assert dict(EqualError(threshold=5)([a, b], 120).ranks) == {"a": 8, "b": 4}
    c = curve("c", [20.0] * 9)
    assert dict(EqualError(threshold=5)([a, b, c], 220).ranks) == {"a": 8, "b": 4, "c": None}
    tight = EqualError(threshold=5)([a, b, c], 70)  # dense alone costs too much: cut from its largest rank, 8, on
    assert total_cost([a, b, c], tight.ranks) <= 70
    assert tight.ranks["c"] is not None
    assert tight.ranks["c"] >= tight.ranks["a"] >= tight.ranks["b"]  # type: ignore[operator]


@pytest.mark.parametrize(("share", "threshold"), in_turn([0.2, 0.5, 0.77], [None, 2.5]))
def test_equal_curves_get_uniform_ranks(threshold: float | None, share: float) -> None:
    curves = [curve(name, FALLING) for name in "abc"]
    budget = int(share * 300)
    assert EqualError(threshold)(curves, budget).ranks == Uniform()(curves, budget).ranks


def test_the_threshold_of_uniform_ranks() -> None:
    """A model that loses 6 with uniform ranks has a threshold of 6 / 3; another allocator, or one given, stays."""
    curves, seen = [curve(name, FALLING) for name in "abc"], list[RankPlan]()

    def lost(plan: RankPlan) -> float:
        seen.append(plan)
        return 6.0

    assert EqualError(from_uniform=True).fitted(curves, 150, lost).threshold == 2
    assert seen[0].ranks == Uniform()(curves, 150).ranks
    assert EqualError().fitted(curves, 150, lost).threshold is None
    assert EqualError(threshold=1, from_uniform=True).fitted(curves, 150, lost).threshold == 1
    assert len(seen) == 1


def test_ranks_are_multiples_after_scaling() -> None:
    curves = [curve(name, [float(16 - rank) for rank in range(17)], 10, 160, multiple=4) for name in "ab"]
    for threshold in (None, 1.0, 7.0):
        plan = EqualError(threshold)(curves, 130)
        assert all(rank is not None and rank % 4 == 0 for rank in plan.ranks.values())
        assert total_cost(curves, plan.ranks) <= 130
