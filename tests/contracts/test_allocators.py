"""What every allocator promises, against brute force and a worked example."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowrank_vit.methods.azizi import GradualReduction
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import ALLOCATORS, least_cost, next_rank
from tests.support.cases import in_turn

NAMES = ALLOCATORS.names()


def curve(name: str, n: int, d: int, energies: list[float], fixed: int = 0, multiple: int = 1) -> ErrorCurve:
    squares = torch.tensor(sorted(energies, reverse=True), dtype=torch.float64)
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1)])
    return ErrorCurve(name, tail, Cost(n + d), Cost(n * d), Cost(fixed), multiple)


def random_curves(seed: int, layers: int = 6, multiple: int = 1) -> list[ErrorCurve]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 72), (24, 24), (24, 96), (96, 24)]
    curves = []
    for index in range(layers):
        n, d = shapes[index % 4]
        energies = torch.rand(min(n, d), generator=generator).pow(4).tolist()
        curves.append(curve(f"layer{index}", n, d, energies, fixed=index % 3, multiple=multiple))
    return curves


def cost(curves: list[ErrorCurve], plan: RankPlan) -> int:
    return sum(c.cost(plan.ranks[c.name]) for c in curves)


def objective(curves: list[ErrorCurve], plan: RankPlan) -> float:
    return sum(c.error(plan.ranks[c.name]) for c in curves)


def brute_force(curves: list[ErrorCurve], budget: int) -> float:
    options = [[*c.ranks, None] for c in curves]
    costs = (
        (sum(c.cost(r) for c, r in zip(curves, ranks, strict=True)), ranks) for ranks in itertools.product(*options)
    )
    return min(sum(c.error(r) for c, r in zip(curves, ranks, strict=True)) for spent, ranks in costs if spent <= budget)


@pytest.mark.parametrize(("share", "name"), in_turn([0.3, 0.5, 0.75, 0.9, 0.97, 1.0], NAMES))
class TestEveryAllocator:
    def test_budget_is_met_to_within_one_rank_and_the_knapsack_is_never_worse(self, name: str, share: float) -> None:
        for seed in range(4):
            curves = random_curves(seed)
            budget = int(share * sum(c.dense_cost for c in curves))
            plan, best = (ALLOCATORS.get(each)()(curves, budget) for each in (name, "knapsack"))
            assert objective(curves, best) <= objective(curves, plan) + 1e-9
            left = budget - cost(curves, plan)
            assert left >= 0
            assert set(plan.ranks) == {c.name for c in curves}
            for c in curves:
                rank = plan.ranks[c.name]
                assert rank is None or rank in c.ranks
                raised = next_rank(c, rank)
                if rank is not None and c.error(rank) > c.error(raised):
                    assert c.cost(raised) - c.cost(rank) > left

    def test_ranks_are_multiples(self, name: str, share: float) -> None:
        curves = random_curves(2, multiple=4)
        budget = int(share * sum(c.dense_cost for c in curves))
        plan = ALLOCATORS.get(name)()(curves, budget)
        assert cost(curves, plan) <= budget
        assert all(rank is None or rank % 4 == 0 for rank in plan.ranks.values())


@settings(max_examples=60, deadline=None)
@given(
    energies=st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=6), min_size=1, max_size=4),
    widths=st.lists(st.integers(3, 9), min_size=4, max_size=4),
    fixed=st.integers(0, 3),
    share=st.floats(0, 1.1),
)
@example(energies=[[0.0, 1.0, 8.8e-41]], widths=[3, 3, 3, 3], fixed=2, share=0.0)  # bounds that cross by rounding
def test_knapsack_equals_brute_force(energies: list[list[float]], widths: list[int], fixed: int, share: float) -> None:
    curves = [
        curve(f"layer{i}", len(energy), width, energy, fixed)
        for i, (energy, width) in enumerate(zip(energies, widths, strict=False))
    ]
    low, high = least_cost(curves), sum(c.dense_cost for c in curves)
    budget = low + int(share * (high - low))
    plan = ALLOCATORS.get("knapsack")()(curves, budget)
    assert cost(curves, plan) <= budget
    assert objective(curves, plan) == pytest.approx(brute_force(curves, budget), abs=1e-7)


def test_algorithm_1_from_the_dense_size_worked_by_hand() -> None:
    """Two 4 x 4 layers (16 parameters, 8 a rank, break-even below 2) and a schedule of one halving a step.

    Budget 24 of 32: excess 8; gamma = 1/ln 2 makes tau(0) - tau(1) = 4, then 2, then 1, ...; each rounds up to one
    rank. A's energies are 8, 4, 2, 1 (cumulative loss of ranks 3, 2, 1: 1, 3, 7), B's 8, 6, 5, 4 (4, 9, 15).
    Steps: A to 3 (loss 1; at B 4), A to 2 (3 < 4), B to 3 (4 < 7), A to 1 (7 < 9). A at rank 1 is the first below
    break-even, so only now the count falls: 8 + 16 = 24, the budget.
    """
    a, b = curve("a", 4, 4, [8, 4, 2, 1]), curve("b", 4, 4, [8, 6, 5, 4])
    plan = GradualReduction(gamma=1 / math.log(2), start="dense")([a, b], 24)
    assert dict(plan.ranks) == {"a": 1, "b": None}
    taken = [(step["step"], step["layer"], step["rank"], step["loss"], step["parameters"]) for step in plan.trajectory]
    assert taken == [(1, "a", 3, 1, 32), (2, "a", 2, 3, 32), (3, "b", 3, 4, 32), (4, "a", 1, 7, 24)]


def test_algorithm_1_from_the_factored_size_worked_by_hand() -> None:
    """The same layers to a budget of 20: factored they hold 64, so the schedule removes 22, 11, 5.5: 3, 2 and 1 ranks.

    Steps: A to 1 (loss 7; at B 15), B to 2, where it is still counted dense (A is at the floor), B to 1: 16 in all.
    """
    a, b = curve("a", 4, 4, [8, 4, 2, 1]), curve("b", 4, 4, [8, 6, 5, 4])
    plan = GradualReduction(gamma=1 / math.log(2))([a, b], 20)
    assert dict(plan.ranks) == {"a": 1, "b": 1}
    taken = [(step["step"], step["layer"], step["rank"], step["loss"], step["parameters"]) for step in plan.trajectory]
    assert taken == [(1, "a", 1, 7, 24), (2, "b", 2, 9, 24), (3, "b", 1, 15, 16)]


def test_algorithm_1_removes_what_the_schedule_says() -> None:
    """One layer of 100 x 100 to a third: the first step removes ceil(excess (1 - e^(-1/80)) / 200) ranks."""
    wide = curve("wide", 100, 100, [1.0] * 100)
    for start, size in (("dense", 10000), ("factored", 20000)):
        plan = GradualReduction(start=start)([wide], 3400)
        first = plan.trajectory[0]
        assert first["rank"] == 100 - math.ceil((size - 3400) * (1 - math.exp(-1 / 80)) / 200)
        assert plan.ranks["wide"] == 17


@pytest.mark.parametrize(("seed", "share", "name"), in_turn(range(2), [0.35, 0.85], NAMES))
def test_costs_of_a_table_as_times_are(name: str, share: float, seed: int) -> None:
    """Costs that rise unevenly, some not at all, against all choices; the budget is kept, and the knapsack exact."""
    generator = torch.Generator().manual_seed(seed)
    curves = []
    for layer in random_curves(seed, layers=3):
        steps = torch.randint(0, 4, (4,), generator=generator) * 10
        costs = (100 + steps.cumsum(0)).tolist()
        curves.append(replace(layer, errors=layer.errors[:4], table=(*costs, 160)))
    least, dense = least_cost(curves), sum(layer.dense_cost for layer in curves)
    budget = int(least + share * (dense - least))
    plan = ALLOCATORS.get(name)()(curves, budget)
    assert cost(curves, plan) <= budget
    best = brute_force(curves, budget)
    assert objective(curves, plan) >= best - 1e-12
    if name == "knapsack":
        assert objective(curves, plan) == pytest.approx(best)


def test_a_table_says_what_sizes_cost() -> None:
    """Sizes that cost no less than the dense choice are none."""
    layer = replace(curve("x", 4, 9, [4, 3, 2, 1]), table=(5, 8, 8, 11, 12, 11))
    assert [layer.cost(rank) for rank in (0, 1, 3, 9, None)] == [5, 8, 11, 12, 11]
    assert list(layer.ranks) == [1, 2]
    assert (layer.dense_cost, layer.fixed_cost) == (11, 5)
