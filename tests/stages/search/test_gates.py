"""The search by gates: its candidates, its hand-over to a knapsack, and what it finds on a problem with a known answer."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import analyse, get_recipe
from lowrank_vit.linalg.mixtures import Gated, Mixture, first_kept
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.images import Images
from lowrank_vit.stages.allocate.rules import Knapsack
from lowrank_vit.stages.search import Part, Question, Sizes
from lowrank_vit.stages.search.gates import Gates, gumbel_softmax, preferring
from tests.support.models import images, tiny

QUICK = {"search.epochs": 2, "search.batch_size": 8}


def curve(name: str = "a", ranks: int = 12, dense: int = 100) -> ErrorCurve:
    return ErrorCurve(name, torch.linspace(1, 0, ranks + 1), unit=Cost(10), dense=Cost(dense))


def test_candidates_can_be_chosen_and_save_something() -> None:
    """Of 12 ranks those below 10 are cheaper than dense; 320 for DeiT-S's MLP is above break-even and left out."""
    assert Gates().sizes(Part(curve(), dict, 0)) == [1, 2, 3, 4, 6, 7, 8, 9, None]
    wide = ErrorCurve("fc1", torch.zeros(385), unit=Cost(1920), dense=Cost(384 * 1536))
    assert Gates(candidates="official").sizes(Part(wide, dict, 384)) == [64, 128, 192, 256, None]
    heads = replace(wide, multiple=6)  # floored to whole ranks of six heads, as the code does with 64 // 6
    assert Gates(candidates="official").sizes(Part(heads, dict, 384))[0] == 60
    assert Gates().sizes(Part(curve(dense=5), dict, 0)) == [None]


def test_preferences_for_a_knapsack() -> None:
    """Sizes 2, 5 and dense with the shares 0.2, 0.7 and 0.1: losses log(0.1 / p), and far more below size 2."""
    made = preferring(curve(), [2, 5, None], torch.tensor([0.2, 0.7, 0.1]).log())
    expected = [math.log(0.1 / 0.2)] * 3 + [math.log(0.1 / 0.7)] * 8
    torch.testing.assert_close(made.errors[2:], torch.tensor(expected, dtype=torch.float64))
    assert made.errors[0] > made.errors[1] > 1000
    assert made.error(None) == 0.0
    assert Knapsack()([made], 90).ranks == {"a": 5}
    assert Knapsack()([made], 49).ranks == {"a": 2}
    assert Knapsack()([made], 19).ranks == {"a": 1}


def test_gumbel_softmax_draws_by_its_shares() -> None:
    """When cold it is one-hot, with the probabilities softmax(alpha)."""
    shares, generator = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64), torch.Generator().manual_seed(0)
    draws = torch.stack([gumbel_softmax(shares.log(), 1e-3, generator) for _ in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000, dtype=torch.float64))
    torch.testing.assert_close(draws.mean(0), shares, atol=0.03, rtol=0)


class TwoLayers(nn.Module):
    """Classes by the sum of two linear maps of an image's numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.needed, self.spare = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.needed.weight.data = 3 * torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
        self.spare.weight.data = 1e-3 * torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 1, 1, 12)."""
        return self.needed(x.flatten(1)) + self.spare(x.flatten(1))


def question(model: TwoLayers, budget: int = 120) -> Question:
    def part(name: str) -> Part:
        u, s, vt = torch.linalg.svd(model.get_submodule(name).weight.detach().T)

        def mixture(sizes: Sizes) -> Mixture:
            return {f"{name}.weight": Gated(u * s, vt.T, first_kept(sizes, 12).float())}

        return Part(curve(name), mixture, 12)

    data = torch.randn(64, 1, 1, 12, generator=torch.Generator().manual_seed(1))
    labels = model(data).argmax(1)
    return Question(model, [part("needed"), part("spare")], budget, Classification(), data, labels, 0, False)


@pytest.mark.parametrize("target", ["teacher", "labels"])
def test_it_spends_where_it_matters(target: str) -> None:
    """The layer that decides stays dense, and the one that does nothing has hardly a direction."""
    asked = question(TwoLayers())
    found = Gates(epochs=40, batch_size=32, target=target)(asked)
    ranks = Knapsack()(found, asked.budget).ranks
    assert ranks["needed"] is None
    assert ranks["spare"] <= 2


def test_the_written_objective_overshoots_where_the_loss_is_small() -> None:
    """A loss near zero, times the cost: parameters are free. The sizes that it prefers exceed the budget."""
    asked = question(TwoLayers(), budget=60)
    cost = {}
    for objective in ("written", "lagrangian"):
        made = Gates(epochs=40, batch_size=32, target="labels", objective=objective)(asked)
        likes = {each.name: min([*each.ranks, None], key=each.error) for each in made}
        cost[objective] = sum(each.cost(likes[each.name]) for each in made)
    assert cost["written"] > cost["lagrangian"]
    assert cost["written"] > asked.budget


class Watched:
    """Batches that count how often they are gone through."""

    def __init__(self, batches: list) -> None:
        self.batches, self.seen = batches, 0

    def __iter__(self) -> Iterator:
        self.seen += 1
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def test_the_search_sees_calibration_images_alone() -> None:
    seen, unseen = Watched([images(8)]), Watched([images(8, seed=5)])
    analysis = analyse(tiny(), Images(seen), get_recipe("comcat").but(**QUICK), held_out=Images(unseen))
    before = seen.seen, unseen.seen
    analysis.plan(0.3)
    assert seen.seen > before[0]
    assert unseen.seen == before[1]


@pytest.mark.parametrize("recipe", ["comcat", "heads"])
def test_the_budget_is_met_and_the_same_seed_gives_the_same_plan(recipe: str) -> None:
    changes = {**QUICK, "measured.images": 8} if recipe == "heads" else QUICK
    made = get_recipe(recipe).but(search="gates").but(**changes)
    plans, model = [], tiny()
    for seed in (0, 0, 1):
        analysis = analyse(model, [images(16)], made, seed=seed)
        plans.append(analysis.plan(0.3))
        assert plans[-1].budget["limit"] - 200 < plans[-1].budget["counted"] <= plans[-1].budget["limit"]
        assert plans[-1].budget["preferred"] > 0
    made = [(plan.ranks, plan.budget) for plan in plans]
    assert made[0] == made[1] != made[2]


def test_what_a_step_descends() -> None:
    """A loss of 2 with the multiplier 3: the written price is one-sided, the other rewards what is below the budget."""

    def descended(objective: str, cost: float) -> float:
        return float(Gates(objective=objective).descended(torch.tensor(2.0), torch.tensor(cost), 3.0))

    assert [descended("written", cost) for cost in (1.5, 0.5)] == pytest.approx([2 * 1.5**1.5, 2.0])
    assert [descended("lagrangian", cost) for cost in (1.5, 0.5)] == pytest.approx([2 + 3 * 0.5, 0.5])
