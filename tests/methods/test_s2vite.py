"""Drop and grow: the sizes by hand, what dies and what grows, and a whole run on labels that can be interrupted."""

import math

import pytest
import timm
import torch

from lowrank_vit.methods.s2vite import DropAndGrow, LiveGate, exchange, kept_count, live_counts, moving_share
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.sites import HEAD, HIDDEN
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import GatedLayer, Place, gated, places
from lowrank_vit.stages.gates.learn_gates import make_gates, sites_of
from tests.support.models import images, tiny


def test_the_deit_s_of_the_paper() -> None:
    """4 of 6 heads, and int(0.6 * 1536) hidden units: 14,011,540 parameters of 22,050,664, counted from the shapes."""
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224", pretrained=False)
    sites = sites_of(model)
    prices = Prices(sites, {}, Cost(parameter_count(model)))
    counts = {HEAD: kept_count(6, 4 / 6), HIDDEN: kept_count(1536, 0.6)}
    opens = {place.name: torch.arange(place.count) < counts[place.unit] for place in places(sites, (HEAD, HIDDEN))}
    assert prices.whole.parameters == 22_050_664
    # a block: qkv without biases of keys and values, proj, fc1, fc2, and its norms
    heads, hidden, width = 4 * 64, 921, 384
    block = 3 * width * heads + heads + heads * width + width + 2 * width * hidden + hidden + width + 4 * width
    rest = 22_050_664 - 12 * (12 * width**2 + 13 * width)
    assert prices.expected(opens).parameters == rest + 12 * block
    # the paper's count keeps the biases of keys and values, which the smaller attention does not have
    assert rest + 12 * (block + 2 * heads) == 14_011_540


def test_the_share_that_dies_falls_by_a_cosine() -> None:
    shares = [moving_share(step, 4, 0.5, 0.1) for step in range(6)]
    half = math.sqrt(0.5) / 2  # of the cosine of a quarter of its way, halved
    assert shares == pytest.approx([0.5, 0.3 + 0.4 * half, 0.3, 0.3 - 0.4 * half, 0.1, 0.1])


def layer_with(weight: torch.Tensor, slope: torch.Tensor, rows: torch.Tensor, live: list[int]) -> GatedLayer:
    """The second layer of an MLP of four hidden units."""
    linear, maker = torch.nn.Linear(4, 2), torch.nn.Linear(3, 4)
    linear.weight.data, linear.weight.grad, maker.weight.data = weight, slope, rows
    layer = GatedLayer(linear)
    layer.inputs, layer.makers = LiveGate(Place("mlp", HIDDEN, "fc2", 4)), (maker,)
    layer.inputs.mask.zero_()[live] = 1
    return layer


def test_the_least_die_and_the_steepest_grow() -> None:
    """Live: 0, 1, worth 1 + 1 + 3 and 2 + 2; dead: 2, 3 with slopes 1 + 1 and 3 + 0."""
    weight = torch.tensor([[1.0, -2.0, 9.0, 9.0], [1.0, 2.0, 9.0, 9.0]])
    slope = torch.tensor([[0.0, 0.0, 1.0, -3.0], [0.0, 0.0, 1.0, 0.0]])
    rows = torch.tensor([[1.0, 1, 1], [0, 0, 0], [5, 5, 5], [5, 5, 5]])
    layer = layer_with(weight, slope, rows, [0, 1])
    exchange(layer, 0.5)
    assert layer.inputs is not None
    assert layer.inputs.open().tolist() == [True, False, False, True]
    assert layer.inputs.scores()[[0, 3]].min() >= 1 > layer.inputs.scores()[[1, 2]].max()


def test_a_head_dies_by_the_slope_of_its_attention() -> None:
    """``|sum W dL/dW|`` over a head's columns is the slope of a gate on all that the head makes."""
    model, data = tiny().double(), images(4).double()
    gates = make_gates(model, DropAndGrow())
    with gated(model, gates):
        layer = model.blocks[0].attn.proj
        scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
        handle = layer.register_forward_pre_hook(lambda module, seen: (seen[0] * scale.repeat_interleave(8),))
        model(data).square().sum().backward()
        handle.remove()
        exchange(layer, 0.0)
        torch.testing.assert_close(layer.inputs.worth.double(), scale.grad.abs(), rtol=1e-5, atol=1e-6)


def test_the_largest_share_within_the_budget_lives() -> None:
    model = tiny()
    gates, prices = make_gates(model, DropAndGrow()), Prices.of(model, sites_of(model))
    counts = live_counts(gates, prices, 0.7)
    assert set(counts.values()) == {1, counts["blocks.0.mlp.hidden"]}
    more = {name: torch.arange(gates[name].place.count) < count + (count > 1) for name, count in counts.items()}
    now = {name: torch.arange(gates[name].place.count) < count for name, count in counts.items()}
    limit = 0.7 * prices.whole.parameters
    assert prices.expected(now).parameters <= limit < prices.expected(more).parameters
