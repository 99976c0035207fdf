"""Budgets as users write them: worked by hand."""

import pytest

from lowrank_vit.records.budgets import Budget, budget_of
from lowrank_vit.runtime.errors import InputError


@pytest.mark.parametrize(
    ("size", "dense", "limit"),
    [
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
    ],
)
def test_what_a_budget_allows(size: object, dense: int, limit: float) -> None:
    assert budget_of(size).limit(dense) == pytest.approx(limit)


def test_a_reduction_is_of_the_cost_that_is_named() -> None:
    assert budget_of(0.4, "macs") == Budget("macs", 0.4, "removed")
    assert [str(budget_of(0.4, cost)) for cost in ("parameters", "macs")] == ["reduction 0.4", "reduction 0.4 of macs"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
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
    ],
)
def test_a_budget_that_cannot_be_read_is_one_line(size: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        budget_of(size)
    assert "\n" not in str(refused.value)


def test_the_range_is_named_as_the_budget_is_given() -> None:
    """Of 1000, from 250 on, rounded into the range."""
    assert budget_of(0.9).reach(250, 1000) == "0 (not included) to 0.75"
    assert budget_of("params=0.1").reach(251, 1003) == "0.2503 to 1 (not included)"
    assert budget_of("bytes=1kB").reach(250, 1000) == "0.25kB to 1kB (not included)"
