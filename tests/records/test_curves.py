"""What sizes cost and lose, which rows and columns come first, and budgets as users write them: worked by hand."""

from typing import Any

import pytest
import torch

from lowrank_vit.records.budgets import Budget, budget_of
from lowrank_vit.records.costs import Cost, UnitCosts
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.factors import Directions, PartsInOrder
from lowrank_vit.runtime.errors import InputError


def curve(dense: int, multiple: int = 1) -> ErrorCurve:
    """Ranks 0 to 4 of a layer, 10 parameters each, and 3 for Z and the bias."""
    errors = torch.tensor([9.0, 5.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    return ErrorCurve("x", errors, Cost(10), Cost(dense), Cost(3), multiple)


def test_a_rank_pays_for_what_comes_with_it() -> None:
    assert [curve(100).cost(rank) for rank in (1, 2, None)] == [13, 23, 100]
    assert [curve(100).error(rank) for rank in (0, 2, 4, 9, None)] == [9, 2, 0, 0, 0]


def test_ranks_are_those_that_save_something() -> None:
    """Rank 3 costs 33: of 34 it saves one, of 33 nothing."""
    assert list(curve(34).ranks) == [1, 2, 3]
    assert list(curve(33).ranks) == [1, 2]
    assert list(curve(100).ranks) == [1, 2, 3, 4]  # the curve ends there
    assert list(curve(100, multiple=2).ranks) == [2, 4]
    assert list(curve(13).ranks) == []


def test_identities_of_pivoted_factors_by_hand() -> None:
    """Two heads of two directions, kept in the order 0, 2, 1, 3: identities of 1, 1 + 1, 4 + 1 and 4 + 4 entries."""
    directions = Directions(torch.tensor([0, 2, 1, 3]), torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]))
    costs = UnitCosts(4, unit=Cost(10), dense=Cost(33), fixed=Cost(2), head_width=2)
    curve = directions.curve("heads", costs, 1, pivoted=True)
    assert [curve.cost(rank) for rank in (0, 1, 2, 3, 4, None)] == [2, 11, 20, 27, 34, 33]
    assert curve.ranks == range(1, 4)
    assert directions.curve("heads", costs, 1).cost(4) == 42


def test_directions_are_kept_among_those_that_may_be() -> None:
    units = Directions(torch.tensor([3, 0, 2, 1]), torch.zeros(5))
    assert units.kept(2).tolist() == [0, 3]
    assert units.kept(2, torch.tensor([True, True, True, False])).tolist() == [0, 2]


INNER, INPUTS = torch.tensor([0.2, 0.9, 0.1]), torch.tensor([0.3, 0.05])


def test_the_best_of_either_kind_come_first_and_then_one_order() -> None:
    """The order is inner 1, input 0; inner 0, inner 2, input 1: ranks 1 to 4 keep 2 to 5 of it."""
    columns = PartsInOrder.by_score(INNER, INPUTS, torch.zeros(3), torch.zeros(2))
    assert [tuple(each.tolist() for each in columns.kept(rank)) for rank in (1, 2, 3, 4)] == [
        ([1], [0]),
        ([0, 1], [0]),
        ([0, 1, 2], [0]),
        ([0, 1, 2], [0, 1]),
    ]
    assert [each.tolist() for each in columns.kept(None)] == [[0, 1, 2], [0, 1]]
    torch.testing.assert_close(columns.units.loss[1:], torch.tensor([0.2, 0.1, 0.05, 0.0]))
    inner, inputs = columns.counts()
    assert (inner[1:].tolist(), inputs[1:].tolist()) == ([1, 2, 3, 3], [1, 1, 1, 2])


LIMITS: list[tuple[Any, int, float]] = [
    (0.4, 1000, 600),  # a number is removed
    ("params=0.4", 1000, 400),  # a budget remains
    ("params=3M", 10**7, 3 * 10**6),
    ({"macs": 0.25}, 1000, 250),
    ({"macs": "600M"}, 10**9, 6 * 10**8),
    ("bytes=6MiB", 10**8, 6 * 1024 * 1024),
    ("bytes=6MB", 10**8, 6 * 10**6),
    ({"bytes": ".5 kB"}, 1000, 500),
    ("latency=12ms", 10**9, 12 * 10**6),
    ("latency=0.6", 1000, 600),
    (Budget("macs", 0.5), 1000, 500),
]


def test_what_a_budget_allows() -> None:
    for size, dense, limit in LIMITS:
        assert budget_of(size).limit(dense) == pytest.approx(limit), size


def test_a_reduction_is_of_the_cost_that_is_named() -> None:
    assert budget_of(0.4, "macs") == Budget("macs", 0.4, "removed")
    assert [str(budget_of(0.4, cost)) for cost in ("parameters", "macs")] == ["reduction 0.4", "reduction 0.4 of macs"]


BAD: list[tuple[Any, str]] = [
    ("sugar=0.5", "unknown budget 'sugar'"),
    ("latecy=0.5", "did you mean 'latency'"),
    ("bytes=6XB", "unknown unit of bytes '6XB'|unknown unit of bytes 'XB'"),
    ("params=3ms", "unknown unit of params 'ms': choose from G, M, k"),
    ("params=1.5", "out of reach: without a unit, .* between 0 and 1; an amount has one of the units k, M, G"),
    ("macs=0", "out of reach"),
    ("macs=1", "out of reach"),
    ("macs=nan", "cannot be read: give a budget like params=0.5"),
    ("macs=-0.5", "cannot be read"),
    ("macs", "cannot be read"),
    ({"macs": 0.5, "bytes": 0.5}, "one cost, not 2"),
    ({}, "one cost, not 0"),
]


def test_a_budget_that_cannot_be_read_is_one_line() -> None:
    for size, message in BAD:
        with pytest.raises(InputError, match=message) as refused:
            budget_of(size)
        assert "\n" not in str(refused.value)


def test_the_range_is_named_as_the_budget_is_given() -> None:
    """Of 1000, from 250 on, rounded into the range."""
    assert budget_of(0.9).reach(250, 1000) == "0 (not included) to 0.75"
    assert budget_of("params=0.1").reach(251, 1003) == "0.2503 to 1 (not included)"
    assert budget_of("bytes=1kB").reach(250, 1000) == "0.25kB to 1kB (not included)"
