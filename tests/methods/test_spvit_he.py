"""Attention that becomes a convolution: each choice of its gates, what it costs, the folded model against the masked one."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import compress, learn, load, save
from lowrank_vit.methods.spvit_he import UnitAndMixerGates, UnitGates, remaining
from lowrank_vit.modules.conv_mixer import KERNELS, ConvMixer
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.records.sites import HIDDEN, MIXER
from lowrank_vit.stages.gates import Progress
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, Place, gated
from lowrank_vit.stages.gates.learnt_gates import LearntGates, make_gates, sites_of, with_mixers
from lowrank_vit.stages.gates.mixing import START, DrawnGate, MixerGate, SharedNorm
from lowrank_vit.stages.gates.train_gates import learn_gates
from tests.support.finetuning import TinyData
from tests.support.gradual import IMAGES
from tests.support.hardware import on_cpu
from tests.support.models import ARGUMENTS, images, outputs, tiny

METHOD = UnitAndMixerGates()


def gates_of(model: nn.Module, counts: tuple[int, int]) -> dict[str, Gate]:
    """Gates of which so many in a row are open, with norms that have seen something."""
    gates = make_gates(model, METHOD)
    for index, count in enumerate(counts):
        gate = gates[f"blocks.{index}.attn.{MIXER}"]
        assert isinstance(gate, MixerGate)
        gate.double()
        gate.theta.data[count:] = -1.0
        gate.mixture.data += 0.01 * torch.randn(gate.mixture.shape, generator=torch.Generator().manual_seed(index))
        for norm in gate.norms.values():
            assert isinstance(norm, SharedNorm)
            norm.mean += 0.1
            norm.variance += 0.5
            norm.bias.data += 0.2
    return gates


@pytest.mark.parametrize("counts", [(0, 1), (2, 3)])
def test_the_folded_model_is_the_gated_one_and_costs_what_is_expected(counts: tuple[int, int]) -> None:
    model, data = tiny().double(), IMAGES.double()
    gates = gates_of(model, counts)
    with gated(model, gates):
        seen = outputs(model.eval(), data)
    tensors = {name: gate.tensors() for name, gate in gates.items() if gate.tensors()}
    small = with_mixers(model, LearntGates({}, {}, tensors))
    torch.testing.assert_close(outputs(small, data), seen, rtol=1e-9, atol=1e-9)
    kinds = [getattr(block.attn, "config", {}).get("kernel", "attention") for block in small.blocks]
    assert kinds == [[*KERNELS, "attention"][count] for count in counts]
    prices = Prices.of(model, sites_of(model))
    cost = prices.expected({name: gate.open() for name, gate in gates.items()})
    assert cost.parameters == parameter_count(small)
    assert cost.macs == multiply_accumulates(small, input_size(model))
    assert remaining(gates, prices).item() == pytest.approx(cost.macs / (prices.whole.macs or 0), abs=1e-6)
    assert not any(isinstance(block.attn, ConvMixer) for block in model.blocks)


def test_a_gate_counts_with_all_before_it() -> None:
    gate = gates_of(tiny(), (3, 3))["blocks.0.attn.mixer"]
    gate.theta.data = torch.tensor([2.0, -1.0, 2.0]).double()
    assert gate.open().tolist() == [True, False, False]
    assert gate().tolist() == [1, 0, 0]


def test_a_norm_learns_the_statistics_of_its_batches() -> None:
    norm, x = SharedNorm(4), torch.randn(32, 4, 3, 3) * 2 + 1
    dense = nn.BatchNorm2d(4)
    for _ in range(200):
        torch.testing.assert_close(norm(x), dense(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.eval()(x), dense.eval()(x), rtol=1e-2, atol=1e-2)
    down, bias = torch.randn(4, 3, 3, 3), torch.randn(4)
    folded = norm.folded(down, bias)
    y = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(
        nn.functional.conv2d(y, *folded), norm(nn.functional.conv2d(y, down, bias)), rtol=1e-4, atol=1e-4
    )


def test_what_is_learnt_is_compressed_saved_and_loaded(tmp_path: Path) -> None:
    """Gates that a strong pull closes: some attention becomes something else, the budget is met by hidden units."""
    model = tiny()
    recipe_options = on_cpu(epochs=6, teacher=copy.deepcopy(model))
    learnt = learn(model, TinyData(noise=0.0), "spvit-he", 0.5, **recipe_options)
    learnt.tensors["blocks.0.attn.mixer"]["theta"][1:] = -1.0  # type: ignore[index]
    small, report = compress(model, [IMAGES], "spvit-he", 0.5, learnt=learnt)
    assert isinstance(small.blocks[0].attn, ConvMixer)
    assert 0.4 * parameter_count(model) < parameter_count(small) <= 0.5 * parameter_count(model)
    assert report["params"]["dense"] == parameter_count(model)
    save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), images(3)), outputs(small, images(3)))


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
    penalty = method.penalty(gates, Progress(1, 10, 0.4, prices))
    assert penalty.item() == pytest.approx(2 * (share - 0.4) ** 2, rel=1e-5)
    penalty.backward()
    assert all((gate.theta.grad > 0).all() for gate in gates.values())  # too many: all go down


def test_gates_come_near_to_the_target() -> None:
    options = on_cpu(epochs=20, batch_size=16, target=0.75)
    learnt = learn_gates(tiny(), UnitGates(lr=0.2), teacher=tiny(), images=IMAGES, **options)
    assert 0.6 < learnt.described["expected"]["macs"] / 124_128 < 0.9
