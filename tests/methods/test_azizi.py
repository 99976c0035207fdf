"""Algorithm 1 at the real shapes of the paper's models, where the mean image caps the ranks far below break-even."""

import math
from functools import cache
from typing import Any

import pytest
import timm
import torch

from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.methods.azizi import COUNTED, SCHEDULE, GradualReduction
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.sites import Site
from tests.support.cases import few

SWIN = "swin_base_patch4_window7_224"
MODELS = ("deit_base_patch16_224", "vit_large_patch16_224", SWIN)
SWIN_TOKENS = {"layers.0": 56 * 56, "layers.1": 28 * 28, "layers.2": 14 * 14, "layers.3": 7 * 7}  # of an image
CASES = [(name, reduction) for name in MODELS for reduction in (0.4, 0.5)]


@cache
def shapes(name: str) -> tuple[int, list[Site]]:
    """Parameters of the whole model, and its layers; nothing is in memory."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return parameter_count(model), find_sites(model)


def tokens(name: str, site: Site) -> int:
    """Rows of the mean image: the tokens of an image, as the layer has them."""
    return SWIN_TOKENS[site.name[:8]] if name == SWIN else 197


def curves(name: str, seed: int, unseen: bool) -> list[ErrorCurve]:
    """Random falling spectra up to the cap, and what is unseen there: nothing, as (6) has it, or a random share."""
    generator, found = torch.Generator().manual_seed(seed), []
    for site in shapes(name)[1]:
        cap = min(tokens(name, site), site.full_rank)
        steepness = 1 + 4 * float(torch.rand((), generator=generator))
        spectrum = torch.arange(1, cap + 1, dtype=torch.float64) ** -steepness
        tail = torch.cat([spectrum.flip(0).cumsum(0).flip(0), torch.zeros(1)]) / spectrum.sum()
        rest = 0.5 * float(torch.rand((), generator=generator)) if unseen else 0.0
        n, d = site.in_features, site.out_features
        curve = ErrorCurve(site.name, tail + rest, Cost(n + d), Cost(n * d), full_rank=site.full_rank)
        found.append(curve)
    return found


def budget_of(name: str, reduction: float) -> int:
    """What the layers may hold together."""
    total, sites = shapes(name)
    return int(total * (1 - reduction)) - (total - sum(site.parameters for site in sites))


def plan(name: str, reduction: float, seed: int, *, unseen: bool, **fields: Any) -> RankPlan:
    budget, given = budget_of(name, reduction), curves(name, seed, unseen)
    made = GradualReduction(**fields)(given, budget)
    spent = sum(curve.cost(made.ranks[curve.name]) for curve in given)
    assert spent <= budget
    return made


@pytest.mark.parametrize(("name", "reduction"), few(CASES))
def test_what_is_unseen_gives_the_algorithm_a_say(name: str, reduction: float) -> None:
    """Every step compares losses above zero, other losses make another plan, and 500 iterations reach the target."""
    one, other = (plan(name, reduction, seed, unseen=True) for seed in (0, 1))
    assert all(step["loss"] > 0 for step in one.trajectory)
    assert len(one.trajectory) <= 500
    assert one.ranks != other.ranks


@pytest.mark.parametrize(("name", "reduction"), few(CASES, 1))
def test_as_printed_it_compares_zeros(name: str, reduction: float) -> None:
    """On two unrelated sets of spectra: nearly every step sees losses of zero, so that both lead to the same plan."""
    one, other = (plan(name, reduction, seed, unseen=False) for seed in (0, 1))
    assert sum(step["loss"] == 0 for step in one.trajectory) > 0.95 * len(one.trajectory)
    assert one.ranks == other.ranks


@pytest.mark.parametrize("start", few(["factored", "dense"], 1))
def test_the_schedule_ends_at_its_own_target(start: str) -> None:
    """The own count is then within 0.2 % of what was to be removed, or one rank; single ranks follow only where it must."""
    name, reduction = CASES[1]
    made, target = plan(name, reduction, 0, unseen=True, start=start, until=SCHEDULE), budget_of(name, reduction)
    scheduled = [step for step in made.trajectory if int(step["step"]) <= 500]
    assert int(scheduled[-1]["step"]) > 300
    full = sum(curve.cost(curve.full_rank) for curve in curves(name, 0, True))
    dense = sum(curve.dense_cost for curve in curves(name, 0, True))
    begun = full if start == "factored" else dense
    rank = max(curve.rank_cost for curve in curves(name, 0, True))
    assert -rank <= int(scheduled[-1]["own_count"]) - target <= 0.002 * (begun - target) + rank
    beyond = [step for step in made.trajectory if int(step["step"]) > 500]
    assert all(int(step["parameters"]) > target for step in beyond[:-1])


def test_the_settled_schedule_stops_early_as_it_says() -> None:
    """It stops once the model fits, before half of its iterations, the own count still far above the target."""
    name, reduction = CASES[1]
    made, target = plan(name, reduction, 0, unseen=True, until=COUNTED), budget_of(name, reduction)
    last = made.trajectory[-1]
    assert int(last["step"]) < 300
    assert int(last["parameters"]) <= target
    assert 1.05 < int(last["own_count"]) / target < 1.5


def test_more_iterations_change_the_schedule_that_is_run_to_its_end() -> None:
    few, many = (plan(MODELS[0], 0.5, 0, unseen=True, until=SCHEDULE, iterations=count) for count in (120, 500))
    assert few.ranks != many.ranks
    left = [math.exp(-count / 80) for count in (120, 500)]
    target = budget_of(MODELS[0], 0.5)
    begun = sum(curve.cost(curve.full_rank) for curve in curves(MODELS[0], 0, True))
    for made, last, share in zip((few, many), (120, 500), left, strict=True):
        count = int([step for step in made.trajectory if int(step["step"]) <= last][-1]["own_count"])
        assert count == pytest.approx(target + share * (begun - target), abs=0.01 * target)


@pytest.mark.slow
def test_of_equal_losses_the_layer_with_the_largest_share_left_is_cut() -> None:
    """By hand: two layers that lose nothing, of 4 and 8 ranks; cut in turn, so that their shares stay alike."""
    ranks = {"a": 4, "b": 8}
    given = [ErrorCurve(name, torch.zeros(r + 1), Cost(1), Cost(100), full_rank=r) for name, r in ranks.items()]
    made = GradualReduction(gamma=1e9, iterations=10**5, until=SCHEDULE)(given, 6)
    assert [step["layer"] for step in made.trajectory] == ["a", "b", "b", "a", "b", "b"]
