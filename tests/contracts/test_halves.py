"""What the decompositions of whole attention modules and MLPs promise, against dense float64 truths."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import refitted
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HIDDEN, QUERY_KEY, VALUE, Site
from lowrank_vit.stages.calibrate.observe import resolve
from lowrank_vit.stages.decompose import ATTENTIONS, MLPS
from tests.support.layer import ATTENTION, HEADS, INNER, MLP, WIDTH, N, Sample, dense_moments, normal, sample

PARTS = [*(("values", name) for name in ATTENTIONS.names()), *(("units", name) for name in MLPS.names())]
FITTED = [("values", "heads"), ("units", "interpolative")]  # those that minimise the loss that they predict
MADE = normal(N, INNER, seed=3).double(), normal(INNER, seed=4).double()  # what makes the values, or the hidden units


def restricted(moments: Moments, needs: frozenset[str], site: Site) -> Moments:
    """Only the statistics that the method asks for: it must not read another."""
    wanted = {*resolve(needs, site), "input_sum", "learnt"}
    wanted |= {"sensitive_weight", "sensitive_input_sum"} if "sensitive_second" in needs else set()
    return replace(moments, sums={key: value for key, value in moments.sums.items() if key in wanted})


def part_of(kind: str, name: str, layer: Sample, **fields: object) -> InputSubset:
    """The part whose refit makes a half's output, from nothing but what its method asks for."""
    if kind == "units":
        mlp = MLPS.get(name)(**fields)
        return mlp(MLP, layer.weight, restricted(layer.moments, mlp.needs[0], MLP.fc2), MADE)
    attention = ATTENTIONS.get(name)(**fields)
    moments = restricted(layer.moments, attention.needs[1], ATTENTION.proj)
    return attention.values(ATTENTION, layer.weight, moments, MADE)


def output_loss(layer: Sample, whole: Tensor, sensitivity: float, gradient_damping: float) -> float:
    """``1/2 E[(x E - mean)^T G (x E - mean)]`` over weighted tokens, by its definition, token by token."""
    slopes = layer.gradients.flatten(0, 1)
    energies = slopes.square().sum(1)
    weights = (1 - sensitivity) / len(slopes) + sensitivity * energies / energies.sum()
    metric = slopes.T @ slopes / len(layer.gradients)
    metric = metric + gradient_damping * metric.diagonal().mean() * torch.eye(len(metric))
    error = layer.rows @ (layer.weight - whole)
    error = error - weights @ error
    return 0.5 * float(weights @ (error @ metric * error).sum(1))


@pytest.mark.parametrize(("kind", "name"), FITTED)
class TestEveryFittedPart:
    def test_loss_is_the_stated_objective(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        for sensitivity in (0.0, 0.5, 1.0):
            part = part_of(kind, name, layer, damping=0.0, sensitivity=sensitivity)
            assert part.ridge == 0
            for count in range(1, INNER + 1):
                _, whole = refitted(part, part.units.kept(count))
                truth = output_loss(layer, whole, sensitivity, 0.1)
                assert float(part.units.loss[count]) == pytest.approx(truth, rel=1e-5, abs=1e-12)

    def test_no_other_weight_on_what_is_kept_is_better(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer, damping=0.0)
        kept = part.units.kept(5)
        rows, whole = refitted(part, kept)
        best = output_loss(layer, whole, 0.5, 0.1)
        basis = torch.eye(INNER) if part.basis is None else torch.block_diag(*part.basis)
        for seed, scale in enumerate((1e-3, 1e-2, 1e-1)):
            other = basis[:, kept] @ (rows + scale * rows.std() * normal(*rows.shape, seed=seed))
            assert output_loss(layer, other, 0.5, 0.1) > best

    def test_it_beats_random_choices(self, kind: str, name: str) -> None:
        layer = sample(INNER, N)
        part = part_of(kind, name, layer, damping=0.0)
        for count in (3, 6, 9):
            for seed in range(5):
                other = torch.randperm(INNER, generator=torch.Generator().manual_seed(seed))[:count].sort().values
                _, whole = refitted(part, other)
                assert output_loss(layer, whole, 0.5, 0.1) >= float(part.units.loss[count]) - 1e-12

    def test_few_images_and_dead_units_are_finite(self, kind: str, name: str) -> None:
        weight = sample(INNER, N).weight
        inputs, gradients = normal(2, 3, INNER), normal(2, 3, N)
        inputs[..., 0] = 0
        for x, g in ((inputs, gradients), (torch.ones_like(inputs), gradients), (inputs * 0, gradients * 0)):
            moments = dense_moments(weight, x, g)
            part = part_of(kind, name, Sample(weight, x, g, moments), damping=0.0)
            assert torch.isfinite(part.units.loss).all()
            assert part.ridge > 0
            for count in (1, 5, INNER):
                assert torch.isfinite(refitted(part, part.units.kept(count))[1]).all()


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_all_of_a_part_is_the_layer_as_it_was_and_less_is_nested_in_more(kind: str, name: str) -> None:
    layer = sample(INNER, N)
    part = part_of(kind, name, layer)
    units = part.units
    _, whole = refitted(part, units.kept(INNER))
    torch.testing.assert_close(whole, layer.weight, atol=1e-9, rtol=0)
    assert torch.equal(units.kept(None), torch.arange(INNER))
    assert sorted(units.order.tolist()) == list(range(INNER))
    assert (units.loss.diff() <= 1e-12).all()
    for count in range(1, INNER):
        assert set(units.kept(count).tolist()) < set(units.kept(count + 1).tolist())


def test_hidden_units_turn_with_the_layer() -> None:
    layer, turned = sample(INNER, N), torch.randperm(INNER, generator=torch.Generator().manual_seed(2))
    inputs, weight = layer.inputs[..., turned], layer.weight[turned]
    other = Sample(weight, inputs, layer.gradients, dense_moments(weight, inputs, layer.gradients))
    one, two = (part_of("units", "interpolative", own).units for own in (layer, other))
    assert torch.equal(turned[two.order], one.order)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-6, atol=1e-12)


def test_values_turn_with_the_heads() -> None:
    """Another order of the heads, and any rotation within a head, lose the same."""
    layer = sample(INNER, N)
    heads = torch.tensor([2, 0, 1])
    rotation = torch.block_diag(*(torch.linalg.qr(normal(WIDTH, WIDTH, seed=s)).Q for s in range(HEADS)))
    turned = torch.eye(INNER).view(INNER, HEADS, WIDTH)[:, heads].flatten(1) @ rotation
    inputs, weight = layer.inputs @ turned, turned.T @ layer.weight
    other = Sample(weight, inputs, layer.gradients, dense_moments(weight, inputs, layer.gradients))
    one, two = (part_of("values", "heads", own, damping=0.0).units for own in (layer, other))
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-5, atol=1e-10)


def test_costs_are_those_of_the_layers() -> None:
    """Hand-worked: queries and keys n each and a bias; values n and d; hidden units n, a bias and d; biases once."""
    costs = {**ATTENTION.costs(), **MLP.costs()}
    assert (costs[QUERY_KEY].dense + costs[VALUE].dense).parameters == N * 3 * INNER + 3 * INNER + INNER * N + N
    units = Directions(torch.arange(INNER), torch.zeros(INNER + 1))
    curves = {part: units.curve(part, own, 1) for part, own in costs.items()}
    assert curves[QUERY_KEY].cost(5) == 5 * (2 * N + 1)
    assert curves[VALUE].cost(5) == 5 * 2 * N + N
    assert curves[HIDDEN].cost(5) == 5 * (N + 1 + N) + N
    assert costs[HIDDEN].dense.parameters == INNER * (N + 1 + N) + N
