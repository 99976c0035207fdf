"""Measured losses: one half exchanged, against whole models; and what the allocator makes of them."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.objectives import divergences
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import MeasuredLosses, Replay, corrected
from tests.support.models import LONE, images, tiny

KL = Classification()
UNMEASURED = get_recipe("heads").but(refit=False, measured=0)


@pytest.mark.parametrize("kind", ["vit", "swin", *LONE])
def test_the_replay_is_the_whole_model_with_one_half_exchanged(kind: str) -> None:
    model, data = tiny(kind), images(12, kind)
    analysis = analyse(model, data.split(4), UNMEASURED)
    before = copy.deepcopy(analysis.model.state_dict())
    with Spill() as kept:
        replay = Replay(analysis.model, KL, data.split(5), 7, kept)
        for curve in analysis.curves:
            plan = RankPlan({each.name: 2 * curve.multiple if each is curve else None for each in analysis.curves})
            small, _ = analysis.apply(plan)
            half = curve.name.rpartition(".")[0]
            found = replay.divergence(half, small.get_submodule(half))
            assert found == pytest.approx(divergences(KL, model, [small], [data[:7]])[0], rel=1e-3, abs=1e-9)
            assert found > 0
        after = analysis.model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_corrected_curve_by_hand() -> None:
    errors = torch.tensor([16.0, 8.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    curve = ErrorCurve.in_parameters("x", errors, 1, 9)
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
