"""SPViT's gates of hidden units: what is drawn, what it will cost, and the pull towards it."""

from __future__ import annotations

import pytest
import torch

from lowrank_vit import InputError, compress
from lowrank_vit.methods.spvit_he import UnitGates, remaining
from lowrank_vit.modules.counting import input_size, multiply_accumulates
from lowrank_vit.records.sites import HIDDEN
from lowrank_vit.stages.gates import Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Place
from lowrank_vit.stages.gates.learn_gates import learn_gates, make_gates, sites_of
from lowrank_vit.stages.gates.mixing import START, DrawnGate
from tests.support.gradual import IMAGES
from tests.support.hardware import on_cpu
from tests.support.models import tiny


def test_units_are_drawn_by_their_probability_with_the_slope_of_a_sigmoid() -> None:
    gate = DrawnGate(Place("a", HIDDEN, "b", 40_000))
    gate.draw(7)
    drawn = gate()
    assert set(drawn.tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(torch.tensor(START).sigmoid().item(), abs=0.01)
    drawn.sum().backward()
    soft = (gate.theta + gate.noise).sigmoid()
    torch.testing.assert_close(gate.theta.grad, soft * (1 - soft))
    again, other = DrawnGate(gate.place), DrawnGate(gate.place)
    again.draw(7)
    other.draw(8)
    assert torch.equal(again.noise, gate.noise)
    assert not torch.equal(other.noise, gate.noise)


def test_what_is_open_has_a_probability_above_a_half_whatever_is_drawn() -> None:
    gate = DrawnGate(Place("a", HIDDEN, "b", 4))
    gate.theta.data = torch.tensor([-0.1, 0.1, 3.0, -3.0])
    gate.draw(1)
    assert gate.open().tolist() == [False, True, True, False]
    assert gate.expected().tolist() == [0, 1, 1, 0]
    assert torch.equal(gate.scores() > 0.5, gate.open())


def test_what_remains_is_what_is_expected_and_is_pulled_to_the_target() -> None:
    model = tiny()
    method, prices = UnitGates(strength=2.0), Prices.of(model, sites_of(model))
    gates = make_gates(model, method)
    for index, gate in enumerate(gates.values()):
        gate.theta.data = torch.randn(gate.place.count, generator=torch.Generator().manual_seed(index))
    counted = prices.expected({name: gate.open() for name, gate in gates.items()})
    share = counted.macs / multiply_accumulates(model, input_size(model))
    assert remaining(gates, prices).item() == pytest.approx(share, abs=1e-6)
    penalty = method.penalty(gates, Progress(1, 10, 1.0, 0.4, prices))
    assert penalty.item() == pytest.approx(2 * (share - 0.4) ** 2, rel=1e-5)
    penalty.backward()
    assert all((gate.theta.grad > 0).all() for gate in gates.values())  # too many: all go down


def test_gates_come_near_to_the_target() -> None:
    options = on_cpu(epochs=20, batch_size=16, target=0.75)
    learnt = learn_gates(tiny(), UnitGates(lr=0.2), teacher=tiny(), images=IMAGES, **options)
    assert 0.6 < learnt.described["expected"]["macs"] / 124_128 < 0.9


def test_a_budget_in_multiply_accumulates_is_kept() -> None:
    model = tiny()
    small, report = compress(model, [IMAGES], "spvit-he-gates", budget={"macs": 0.7})
    assert 0.66 < multiply_accumulates(small, input_size(model)) / multiply_accumulates(model, input_size(model)) <= 0.7
    assert report["learnt"]["target"] == 0.7


def test_bad_numbers_are_one_line() -> None:
    with pytest.raises(InputError, match="both finite"):
        UnitGates(lr=0.0)
    with pytest.raises(InputError, match="does not say the size of its images"):
        UnitGates().begin({}, Prices([], {}, Prices.of(tiny(), []).whole), 0.5, 0)
