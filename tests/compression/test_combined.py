"""Several budgets at once, and the search of the smallest model: what plans cost is what models have."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_vit import InputError, analyse, compress, get_recipe
from lowrank_vit.compression import smallest as searching
from lowrank_vit.compression.combined import within_all
from lowrank_vit.compression.smallest import smallest
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.records.budgets import budget_of, budgets_of, parse_budgets
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.stages.allocate import total_cost
from lowrank_vit.stages.allocate.rules import Knapsack
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.cases import few
from tests.support.models import images, outputs, tiny

FREE = get_recipe("exact")


def curve(name: str, losses: Sequence[float], each: int) -> ErrorCurve:
    return ErrorCurve(name, torch.tensor(losses, dtype=torch.float64), Cost(each), Cost(1000))


def test_both_budgets_bind_in_a_case_by_hand() -> None:
    """A size of a costs 1 and 3, one of b 3 and 1; 9 of both may be spent.

    The first alone would buy (3, 2) for 9, which costs 11 of the second, and the second (2, 3). Within both, (2, 2)
    loses least: (3, 1) takes 10 of the second.
    """
    losses = [100.0, 10.0, 5.0, 2.0, 1.0]
    first, second = ([curve("a", losses, a), curve("b", losses, b)] for a, b in ((1, 3), (3, 1)))
    assert Knapsack()(first, 9).ranks == {"a": 3, "b": 2}
    assert within_all(first, [first, second], [9, 9], Knapsack()).ranks == {"a": 2, "b": 2}
    assert within_all(first, [first, second], [9, 11], Knapsack()).ranks == {"a": 3, "b": 2}


@pytest.mark.parametrize("seed", range(2))
def test_sizes_are_near_the_best_of_all_that_keep_within_three_budgets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    each = rng.integers(1, 9, (3, 5))
    falls = [np.cumsum(rng.uniform(0.05, 1, 7) ** 3)[::-1] for _ in range(5)]
    costs = [[curve(str(i), falls[i].tolist(), int(row[i])) for i in range(5)] for row in each]
    allowed = [int(rng.uniform(0.45, 0.7) * 6 * row.sum()) for row in each]
    plan = within_all(costs[0], costs, allowed, Knapsack())
    for priced, most in zip(costs, allowed, strict=True):
        assert total_cost(priced, plan.ranks) <= most
    choices = np.array(list(product(range(1, 7), repeat=5)))
    lost = sum(falls[i][choices[:, i]] for i in range(5))
    best = lost[(choices @ each.T <= allowed).all(1)].min()
    found = sum(falls[int(name)][rank] for name, rank in plan.ranks.items())
    assert best - 1e-9 <= found <= best + 0.05 * (lost.max() - lost.min())


def test_a_model_keeps_within_both_and_a_budget_that_does_not_bind_changes_nothing() -> None:
    model, data = tiny(), images(16)
    analysis = analyse(model, [data], FREE, device="cpu")
    alone = [analysis.plan(size) for size in ("params=0.6", "macs=0.62")]
    small, report = analysis.compress("params=0.6,macs=0.62")
    assert parameter_count(small) <= 0.6 * parameter_count(model)
    assert multiply_accumulates(small, data.shape[1:]) <= 0.62 * multiply_accumulates(model, data.shape[1:])
    told = [report["budget"], *report["budget"]["also"]]
    assert [(each["cost"], each["asked"]) for each in told] == [("parameters", "params=0.6"), ("macs", "macs=0.62")]
    assert all(each["counted"] <= each["limit"] for each in told)
    for size, plan in zip(("params=0.6,macs=0.99", "bytes=1GiB,macs=0.62"), alone, strict=True):
        assert analysis.plan(size).ranks == plan.ranks


@pytest.mark.parametrize("recipe", few(["best", "paper", "svd_llm"], 1))
def test_every_kind_of_recipe_keeps_within_both(recipe: str) -> None:
    model, data = tiny(), images(16)
    changes = {"solver": "closed_form"} if recipe == "paper" else {}
    small, _ = compress(model, [data], get_recipe(recipe).but(**changes), budget={"params": 0.7, "macs": 0.7})
    assert parameter_count(small) <= 0.7 * parameter_count(model)
    macs = [multiply_accumulates(each, data.shape[1:]) for each in (model, small)]
    assert macs[1] <= 0.7 * macs[0]


def test_several_budgets_are_read_and_refused() -> None:
    both = budgets_of("params=0.5,latency=12ms")
    assert str(both) == "params=0.5,latency=12ms"
    assert both == budgets_of({"params": 0.5, "latency": "12ms"}) == budgets_of(both)
    assert parse_budgets("params=0.5,macs=0.5") == {"params=0.5,macs=0.5": budgets_of("params=0.5,macs=0.5")}
    with pytest.raises(InputError, match="one limit"):
        budgets_of("params=0.5,params=0.4")
    with pytest.raises(InputError, match="one cost, not 2"):
        budget_of(both)
    for size, said in (
        ("params=0.5,macs=0.01", "budget macs=0.01 is out of reach"),
        ("params=0.01,macs=0.5", "budget params=0.01 is out of reach"),
        ("bytes=1GiB,macs=10G", "bytes=1GiB is out of reach"),
    ):
        with pytest.raises(InputError, match=said):
            compress(tiny(), [images(8)], FREE, budget=size)


def test_a_comparison_counts_by_hand() -> None:
    dense, small = (nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)) for _ in range(2))
    dense[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    small[1].weight.data = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # the second class where the first input is positive
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [5.0, 1.0]])[:, :, None, None]  # images of two channels
    labels = torch.tensor([0, 1, 1, 1])
    seen = compare(dense, small, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert (seen["n"], seen["agreement"]) == (4, 25.0)  # dense: 0 1 1 0; small: 1 0 1 1, where equal logits are class 0
    assert (seen["top1_dense"], seen["top1"]) == (75.0, 50.0)
    p, q = (model(x).detach().double().softmax(-1) for model in (dense, small))
    assert seen["kl"] == pytest.approx(float((p * (p / q).log()).sum() / 4))
    assert compare(dense, small, [x])["top1"] is None
    assert compare(dense, small, [(x, labels - 2)])["top1"] is None
    with pytest.raises(InputError, match="no images"):
        compare(dense, small, [])


@pytest.mark.slow
def test_the_search_ends_at_the_last_size_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss of 100 points for all, a threshold in the reductions is found to within 1/64 of their range."""
    analysis = analyse(tiny(), images(16).split(8), "svd", device="cpu")

    def lost(dense: nn.Module, small: nn.Module, batches: object, **options: object) -> dict[str, object]:
        share = 1 - parameter_count(small) / parameter_count(dense)
        return {"n": 9, "agreement": 100.0 if share <= 0.37 else 0.0, "kl": 0.0, "top1": None, "top1_dense": None}

    monkeypatch.setattr(searching, "compare", lost)
    small, report, trials = smallest(analysis, 1.0, [])
    assert len(trials) == 6
    assert 0.34 < report["params"]["reduction"] <= 0.37
    assert report["params"]["reduction"] == max(trial.reduction for trial in trials if trial.lost <= 1)
    assert outputs(small, images(2)).shape == (2, 10)
    small, report, trials = smallest(analysis, 1.0, [], within="macs=0.8")
    assert [trials[0].reduction < 0.3, len(trials)] == [True, 7]  # the budget alone comes first
    assert 0.34 < report["params"]["reduction"] <= 0.37
    [macs] = report["budget"]["also"] if report["budget"]["cost"] != "macs" else [report["budget"]]
    assert macs["counted"] <= macs["limit"]
    with pytest.raises(InputError, match=r"loses 100\.00 points on 9 images: raise the budget or `max_loss=`"):
        smallest(analysis, 1.0, [], within="macs=0.5")
    monkeypatch.setattr(searching, "points_lost", lambda measured: 50.0)
    with pytest.raises(
        InputError, match=r"even a reduction of 0.0\d+ loses 50.00 points on 9 images: raise `max_loss=`"
    ):
        smallest(analysis, 1.0, [])
    with pytest.raises(InputError, match="from 0 to 100"):
        smallest(analysis, float("nan"), [])
