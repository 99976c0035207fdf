"""Attention that becomes a convolution: each choice of its gates, what it costs, the folded model against the masked one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_vit import compress, learn, load, save
from lowrank_vit.methods.spvit_he import UnitAndMixerGates, remaining
from lowrank_vit.modules.conv_mixer import KERNELS, ConvMixer
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.records.sites import MIXER
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, gated
from lowrank_vit.stages.gates.learn_gates import LearntGates, make_gates, sites_of, with_mixers
from lowrank_vit.stages.gates.mixing import MixerGate, SharedNorm
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


@pytest.mark.parametrize("counts", [(0, 1), (2, 3), (1, 0), (3, 2)])
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
