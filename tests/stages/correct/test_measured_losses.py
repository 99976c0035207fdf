"""Measured losses of halves exchanged, and measured curves: against whole models, and worked by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import InputError, analyse, compress, get_recipe
from lowrank_vit.compression.measure import loss_of_plan
from lowrank_vit.compression.recipe import recipe_of
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.stages.allocate import least_cost, total_cost
from lowrank_vit.stages.allocate.rules import EqualError, GreedyMarginal, Knapsack, Uniform, smallest_within
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves, MeasuredLosses, corrected
from tests.support.cases import few, in_turn
from tests.support.models import KINDS, LONE, images, outputs, same, tiny, weights
from tests.support.refits import check_replay

KL = Classification()
UNMEASURED = get_recipe("heads").but(refit=False, measured=0)


@pytest.mark.parametrize("kind", few(["vit", "swin", *LONE], 3))
def test_the_replay_is_the_whole_model_with_one_half_exchanged(kind: str) -> None:
    model, data = tiny(kind), images(12, kind)
    analysis = analyse(model, data.split(4), UNMEASURED)
    before = weights(analysis.model)
    check_replay(analysis, KL, data, 7, lambda small: divergences(KL, model, [small], [data[:7]])[0])
    assert same(analysis.model, before)


def test_a_corrected_curve_by_hand() -> None:
    errors = torch.tensor([16.0, 8.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    curve = ErrorCurve("x", errors, Cost(1), Cost(9))
    once = corrected(curve, [(2, 12.0)], trust=1)
    assert once.errors.tolist() == pytest.approx([48, 24, 12, 6, 0])  # thrice what was predicted
    twice = corrected(curve, [(3, 2.0), (1, 32.0)], trust=1)
    assert twice.errors.tolist() == pytest.approx([64, 32, 8, 2, 0])  # 4 times, 2 times in between, once
    rising = corrected(curve, [(1, 1.0), (2, 5.0)], trust=1)
    assert rising.errors[1] == pytest.approx(5)  # keeping less cannot cost less
    assert all(a >= b for a, b in zip(rising.errors, rising.errors[1:], strict=False))
    half = corrected(curve, [(2, 16.0)], trust=0.5)
    assert half.errors.tolist() == pytest.approx([32, 16, 8, 4, 0])  # four times as much, half believed: twice
    geometric = MeasuredLosses()(curve, [(2, 16.0)])  # unless told: the geometric mean of predicted and measured
    assert geometric.errors[2] == pytest.approx(math.sqrt(4 * 16))
    assert geometric.errors[3] == pytest.approx(math.sqrt(2 * 8))
    assert MeasuredLosses()(curve, [(1, 2.0)]).errors[1] == pytest.approx(math.sqrt(8 * 2))
    assert corrected(curve, [(4, 1e-9)], trust=1) is curve  # of what is lossless nothing can be learnt


def test_a_wrong_prediction_is_put_right() -> None:
    """A part whose predicted loss is a thousand times too large stays dense, unless it is measured."""
    model, data = tiny(), images(16)
    analysis = analyse(model, data.split(8), UNMEASURED)
    right = analysis.plan(0.4)
    victim = next(name for name, count in right.ranks.items() if count is not None and name.endswith("hidden"))
    wrong = {
        name: [replace(curve, errors=curve.errors * (1000 if curve.name == victim else 1)) for curve in curves]
        for name, curves in analysis.curves_by_unit.items()
    }
    tampered = replace(analysis)
    vars(tampered)["curves_by_unit"] = wrong
    assert tampered.plan(0.4).ranks[victim] is None
    again = replace(tampered, recipe=UNMEASURED.but(measured=1))
    vars(again)["curves_by_unit"] = wrong
    measured = again.plan(0.4)
    assert measured.ranks[victim] is not None
    assert {step["part"] for step in measured.measured} == set(right.ranks)
    own = next(step for step in measured.measured if step["part"] == victim)
    assert own["predicted_loss"] > 100 * own["measured_loss"] > 0


def features_of(model: nn.Module, data: Tensor) -> Tensor:
    with torch.no_grad():
        return model.forward_head(model.forward_features(data), pre_logits=True).double().flatten(1)  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "currency"), in_turn(KINDS, ["kl", "feature"]))
def test_a_measured_loss_is_that_of_a_model_compressed_by_hand(kind: str, currency: str) -> None:
    """One layer at one rank, in a copy of the model, run as a whole; the dense choice loses nothing."""
    model, data = tiny(kind), images(12, kind)
    sense = MeasuredCurves(currency=currency, images=9, points=3, span=4)
    analysis = analyse(model, data.split(4), get_recipe("aafm").but(sense=sense))
    for before, after in list(zip(analysis.curves, analysis.priced_losses, strict=True))[::3]:
        sizes = sense.sizes(before)
        assert 1 < len(sizes) <= 4
        assert {before.ranks[0], before.ranks[-1]} <= set(sizes)
        found = []
        for rank in sizes:
            small = copy.deepcopy(analysis.model)
            cut = next(decomposed for decomposed in analysis.decomposed if decomposed.name == before.name).cut(
                {before.name: rank}
            )
            replace_module(small, before.name, cut.fold())
            if currency == "kl":
                found.append(divergences(Classification(), analysis.model, [small], [data[:9]])[0])
            else:
                dense, less = features_of(analysis.model, data[:9]), features_of(small, data[:9])
                found.append(float(((dense - less).square().sum(1) / less.square().sum(1)).mean()))
        for place, rank in enumerate(sizes):
            assert after.error(rank) == pytest.approx(min(found[: place + 1]), rel=1e-3, abs=1e-9)
        assert (after.errors.diff() <= 0).all()
        assert after.error(None) == 0
        assert (after.unit, after.dense, after.fixed) == (before.unit, before.dense, before.fixed)


def test_what_a_whole_model_loses_is_measured_in_the_same_currency() -> None:
    model, data = tiny("vit"), images(12, "vit")
    analysis = analyse(model, data.split(4), get_recipe("flar").but(sense=MeasuredCurves("feature", images=12)))
    plan = RankPlan({curve.name: 2 for curve in analysis.curves})
    small, _ = analysis.apply(plan)
    dense, less = features_of(analysis.model, data), features_of(small, data)
    truth = float(((dense - less).square().sum(1) / less.square().sum(1)).mean())
    sense = analysis.recipe.sense
    assert sense is not None
    assert loss_of_plan(analysis, sense, plan) == pytest.approx(truth, rel=1e-3)


def test_a_curve_by_hand() -> None:
    """Losses 8 at rank 1, 2 at rank 4: log-log straight, so 4 at rank 2; a loss that rises is not believed."""
    curve = ErrorCurve("x", torch.zeros(9, dtype=torch.float64), Cost(1), Cost(9))
    sensed = MeasuredCurves()(curve, [(4, 2.0), (1, 8.0), (8, 3.0)])
    assert sensed.errors.tolist() == pytest.approx([8, 8, 4, 8 / 3, 2, 2, 2, 2, 2])
    assert MeasuredCurves()(curve, []) is curve
    flat = ErrorCurve("x", torch.zeros(65), Cost(1), Cost(65))
    assert MeasuredCurves().sizes(flat) == [1, 4, 6, 10, 16, 25, 40, 64]
    assert MeasuredCurves(points=2).sizes(ErrorCurve("x", torch.zeros(65), Cost(1), Cost(65), multiple=8)) == [8, 64]
    assert MeasuredCurves().sizes(ErrorCurve("x", torch.zeros(3), Cost(9), Cost(9))) == []  # nothing saves anything


@pytest.mark.parametrize(
    ("sense", "multiple"),
    in_turn([MeasuredCurves(), MeasuredCurves(points=2), MeasuredCurves(ratios=(0.4, 0.7, 0.9))], [1, 8]),
)
def test_no_size_below_the_least_measured_is_chosen(sense: MeasuredCurves, multiple: int) -> None:
    """The loss there is not known: neither one threshold, nor the knapsack, nor what is cheapest takes such a size."""
    generator = torch.Generator().manual_seed(0)
    curves = []
    for name in "abc":
        before = ErrorCurve(name, torch.zeros(97, dtype=torch.float64), Cost(2), Cost(200), multiple=multiple)
        losses = torch.rand(len(sense.sizes(before)), generator=generator).sort(descending=True).values.tolist()
        curves.append(sense(before, list(zip(sense.sizes(before), losses, strict=True))))
    for curve in curves:
        least = sense.sizes(ErrorCurve("x", curve.errors, Cost(2), Cost(200), multiple=multiple))[0]
        assert curve.ranks[0] == least
        for threshold in (*curve.errors.tolist(), 0.0, math.inf):
            assert (smallest_within(curve, threshold) or least) >= least
    for allocator in (EqualError(), Knapsack(), GreedyMarginal(), Uniform()):
        for budget in (least_cost(curves), 300, 500):
            plan = allocator(curves, budget)
            assert total_cost(curves, plan.ranks) <= budget
            assert all(rank is None or rank >= curves[0].ranks[0] for rank in plan.ranks.values())


def test_the_least_size_is_measured_or_not_offered() -> None:
    curve = ErrorCurve("x", torch.zeros(101), Cost(1), Cost(101))
    assert MeasuredCurves().sizes(curve)[0] == curve.ranks[0] == 1
    assert MeasuredCurves(ratios=(0.9, 0.4)).sizes(curve) == [40, 90]
    with pytest.raises(InputError, match="ratios"):
        MeasuredCurves(ratios=(0.0,))


@pytest.mark.parametrize("name", few(["flar", "comcat0", "aafm", "fwsvd_search", "asvd_search"]))
def test_a_recipe_with_measured_curves_meets_its_budget(name: str) -> None:
    model, data = tiny("vit"), images(12, "vit")
    recipe = get_recipe(name).but(**{"sense.images": 8, "sense.points": 3})
    assert recipe_of(recipe.record()).sense == recipe.sense
    small, report = compress(model, data.split(4), recipe, 0.4)
    dense = parameter_count(model)
    assert 0.59 * dense < report["params"]["compressed"] == parameter_count(small) <= 0.6 * dense
    assert outputs(small, data).isfinite().all()
    assert "sense" in report["seconds"]
    assert "MeasuredCurves" in report["methods"]


def test_the_divergence_is_that_of_the_small_model_from_the_dense_one() -> None:
    """KL(p || q) of p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3; the other way it would be another number."""
    dense, small = (torch.tensor([shares]).double().log() for shares in ([0.5, 0.5], [0.25, 0.75]))
    truth = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(Classification().divergence(dense, small)) == pytest.approx(truth)
    assert float(Classification().divergence(small, dense)) != pytest.approx(truth, rel=1e-2)
