"""WDPruning's gates: the mask and its gradients by hand, the Lagrangian, and scores that keep each matrix's count."""

import pytest
import torch

from lowrank_vit.methods.wdpruning import TopK, TopKGate, TopKGates, remaining
from lowrank_vit.records.sites import HIDDEN, OUTPUT
from lowrank_vit.stages.gates import Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import GatedLayer, Place
from lowrank_vit.stages.gates.learnt_gates import make_gates, sites_of
from tests.support.gradual import run
from tests.support.models import tiny


def test_the_best_are_kept_and_gradients_go_straight_through() -> None:
    """sigmoid(0) keeps ceil(0.5 * 5) = 3; the threshold's gradient is the sum over those."""
    scores = torch.tensor([0.1, 0.5, -0.2, 0.4, 0.3], requires_grad=True)
    threshold = torch.tensor(0.0, requires_grad=True)
    mask = TopK.apply(scores, threshold)
    assert mask.tolist() == [0, 1, 0, 1, 1]
    slopes = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    (mask * slopes).sum().backward()
    assert scores.grad.tolist() == slopes.tolist()
    assert threshold.grad.item() == 2 + 8 + 16


def test_scores_above_one_are_those_that_are_kept() -> None:
    gate = TopKGate(Place("a", HIDDEN, "b", 7), 1.0)
    gate.score.data = torch.randn(7)
    for threshold in (-2.0, 0.0, 0.7, 10.0):
        gate.threshold.data.fill_(threshold)
        if threshold > -2 or int(gate.open().sum()) > 1:
            assert torch.equal(gate.scores() > 1, gate.open())
        assert (gate.scores() >= 0).all()
        assert torch.equal(gate.scores().argsort(descending=True), gate.score.argsort(descending=True))


def progress(target: float) -> tuple[dict[str, TopKGate], Progress]:
    model = tiny()
    method = TopKGates()
    return make_gates(model, method), Progress(1, 10, target, Prices.of(model, sites_of(model)))  # type: ignore[return-value]


def test_what_remains_is_what_is_expected() -> None:
    """With some of every unit closed, the share by thresholds is the share that is counted from masks."""
    gates, state = progress(0.5)
    for index, gate in enumerate(gates.values()):
        gate.score.data = torch.randn(gate.place.count)
        gate.threshold.data.fill_(0.3 * (index % 5) - 0.5)
    counted = state.prices.expected({name: gate.open() for name, gate in gates.items()})
    assert remaining(gates, state).item() == pytest.approx(counted.parameters / state.prices.whole.parameters, abs=1e-6)


def test_the_lagrangian_is_zero_below_the_target_and_rises_above() -> None:
    gates, state = progress(0.6)
    layers = []
    for gate in gates.values():
        layer = GatedLayer(torch.nn.Linear(1, 1))
        setattr(layer, "outputs" if gate.place.unit == OUTPUT else "inputs", gate)
        layers.append(layer)
    method = TopKGates(multiplier=2.0, ascent=3.0)
    share = remaining(gates, state).item()
    before = method.penalty(gates, state)
    excess = share - 0.6
    assert before.item() == pytest.approx(1.0 * excess + 1.0 * excess**2, rel=1e-4)
    before.backward()
    assert all(gate.threshold.grad > 0 for gate in gates.values())
    method.after_step(layers, state)
    first = next(iter(gates.values()))
    assert first.multipliers.tolist() == pytest.approx([1 + 3 * excess, 1 + 3 * excess**2], rel=1e-4)
    below = Progress(1, 10, 1.0, state.prices)
    assert method.penalty(gates, below).item() == 0
    method.after_step(layers, below)
    assert first.multipliers[0].item() == pytest.approx(1 + 3 * excess, rel=1e-4)


@pytest.mark.slow
def test_training_comes_near_the_target() -> None:
    learnt = run("topk", epochs=40, target=0.7)
    share = learnt.described["expected"]["params"] / 7130
    assert 0.5 < share <= 0.8
