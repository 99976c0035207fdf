"""LoSparse's rows: their importance and schedule by hand, what they cost, and that folding changes nothing."""

import copy
from itertools import pairwise

import pytest
import torch

from lowrank_vit import Recipe, analyse, compress, get_recipe, learn
from lowrank_vit.methods.losparse import LearntRows, PlatonRows, SparseGate, best_rows, kept_share
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.stages.calibrate.statistics import Batch, Seen, gradient_abs
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Place, gated
from lowrank_vit.stages.gates.learnt_gates import LearntGates, make_gates, sites_of
from tests.support.cases import few
from tests.support.finetuning import TinyData
from tests.support.gradual import IMAGES
from tests.support.hardware import on_cpu
from tests.support.models import KINDS, images, outputs, tiny


def gate_on(weight: torch.Tensor, share: float = 0.3) -> SparseGate:
    gate = SparseGate(Place("layer", "row", "layer", len(weight)), share)
    gate.split(weight)
    return gate


def test_it_starts_from_the_best_factors_of_a_weight_equally_large() -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    gate = gate_on(weight, 0.5)
    u, values, vt = torch.linalg.svd(weight)
    rank = gate.up.shape[1]
    assert 1 < rank < 5
    torch.testing.assert_close(gate.up @ gate.down, u[:, :rank] * values[:rank] @ vt[:rank])
    torch.testing.assert_close(gate.up.T @ gate.up, gate.down @ gate.down.T)


def test_on_a_quadratic_rows_are_ordered_by_what_they_hold_times_its_slope() -> None:
    """While the uncertainty is the same everywhere: the loss ``w^T H w / 2`` has the slopes ``H w``."""
    generator = torch.Generator().manual_seed(0)
    weight, curvature = torch.randn(7, 5, generator=generator), torch.rand(7, 5, generator=generator)
    gate = gate_on(weight)
    gate.spread.fill_(1.0)
    for _ in range(4):
        gate.watch(weight, curvature * weight, last=True, interval=1, betas=(0.5, 1.0))
    truth = ((weight - gate.up @ gate.down) * curvature * weight).abs().mean(1)
    assert gate.importance().argsort().tolist() == truth.argsort().tolist()


def test_running_means_by_hand() -> None:
    """Of one entry that is 8 beside its low-rank part 0: |S g| is 2 and 4, then 4 and 8, halved over two steps each."""
    gate = gate_on(torch.zeros(1, 1))
    weight = torch.full((1, 1), 8.0)
    for slope, last in ((0.25, False), (-0.5, True), (0.5, False), (1.0, True)):
        gate.watch(weight, torch.full((1, 1), slope), last, 2, (0.5, 0.75))
    # means: 3 then 6; running: 1.5, then 3.75; how far off: 1.5, then 2.25; a quarter of each is taken up
    assert gate.mean.item() == 3.75
    assert gate.spread.item() == 0.25 * 1.5 * 0.75 + 0.25 * 2.25
    assert gate.importance().item() == gate.mean.item() * gate.spread.item()


def test_the_share_falls_from_one_to_the_last_by_a_cubic() -> None:
    shares = [kept_share(step, 3, 13, 0.2) for step in range(20)]
    assert shares[:4] == [1.0] * 4
    assert shares[13:] == pytest.approx([0.2] * 7)
    assert all(one >= other for one, other in pairwise(shares))
    assert shares[8] == pytest.approx(0.2 + 0.8 / 8)
    assert kept_share(5, 5, 5, 0.2) == 1.0


def test_the_best_rows_of_all_layers_fit() -> None:
    """Widths 2 and 5; the best of each come first, 7 entries; of what is left, the next two fit into 4 more."""
    scores = [torch.tensor([0.5, 9.0, 0.4]), torch.tensor([0.3, 0.1])]
    masks, places = best_rows(scores, [2, 5], 11.0)
    assert [mask.tolist() for mask in masks] == [[True, True, True], [True, False]]
    masks, _ = best_rows(scores, [2, 5], 10.9)
    assert [mask.tolist() for mask in masks] == [[True, True, False], [True, False]]
    masks, _ = best_rows(scores, [2, 5], 0.0)
    assert [int(mask.sum()) for mask in masks] == [1, 1]
    assert torch.cat(places).sort().values.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert places[1][1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_hardened_and_folded_is_what_was_masked(kind: str) -> None:
    """Parameters and multiply-accumulates, counted on the folded model, are those told from the masks."""
    model, data, method = tiny(kind), images(6, kind), GRADUAL.get("sparse_rows")(share=0.2)
    gates, generator = make_gates(model, method), torch.Generator().manual_seed(2)
    prices = Prices.of(model, sites_of(model, method))
    with gated(model, gates), torch.no_grad():
        for number, gate in enumerate(gates.values()):
            layer = model.get_submodule(gate.place.layer)
            gate.up += 0.1 * torch.randn(gate.up.shape, generator=generator)
            gate.mask.copy_(torch.rand(gate.place.count, generator=generator) < (0.4, 0.95, 1.1)[number % 3])
            gate.mask[0] = 1
            layer.layer.weight[gate.mask == 0] = gate.start[gate.mask == 0]
        masked = outputs(model, data)
        expected = prices.expected({name: gate.open() for name, gate in gates.items()})
    torch.testing.assert_close(outputs(model, data), masked, rtol=0, atol=0)
    recipe = Recipe(name="masks", units={"rows": LearntRows(share=0.2)}, gradual=method, labelled=True)
    learnt = LearntGates({name: gate.scores() for name, gate in gates.items()}, {"protocol": "none"})
    analysis = analyse(model, [images(8, kind)], recipe, learnt=learnt)
    counts = {curve.name: int(gates[curve.name].mask.sum()) for curve in analysis.curves}
    plan = {
        curve.name: counts[curve.name] if curve.cost(counts[curve.name]) < curve.dense_cost else None
        for curve in analysis.curves
    }
    assert None in plan.values()
    small, _ = analysis.apply(RankPlan(plan))
    torch.testing.assert_close(outputs(small, data), masked, rtol=1e-4, atol=1e-5)
    assert expected.parameters == parameter_count(small)
    assert expected.macs == multiply_accumulates(small, input_size(model))


@pytest.mark.slow
def test_what_was_trained_is_what_is_folded() -> None:
    """The budget is met to less than a row by training alone, so that compressing loses nothing more."""
    model = tiny()
    method = get_recipe("losparse").but(**{"gradual.interval": 2})
    learnt = learn(model, TinyData(noise=0.0), method, 0.4, **on_cpu(epochs=6, lr=1e-2))
    small, report = compress(model, [IMAGES], method, 0.4, learnt=learnt)
    data = images(6)
    assert not torch.allclose(outputs(model, data), outputs(tiny(), data), rtol=0, atol=0.1)
    torch.testing.assert_close(outputs(small, data), outputs(model, data), rtol=1e-4, atol=1e-5)
    limit = 0.6 * parameter_count(model)
    assert limit - 64 < learnt.described["expected"]["params"] <= limit
    assert limit - 64 < parameter_count(small) <= limit
    assert {layer["rank"] for layer in report["layers"]} <= {1, None}


@pytest.mark.parametrize("kind", few(KINDS, 1))
def test_what_is_folded_is_the_split_weight(kind: str) -> None:
    """Of each layer: its truncated SVD, its own weight where a row was kept, and the mean of the rest in the bias."""
    model, data = tiny(kind).double(), images(16, kind).double()
    analysis = analyse(model, data.split(8), "losparse0")
    plan = analysis.plan(0.3)
    small, _ = analysis.apply(plan)
    same = copy.deepcopy(model)
    for decomposed in analysis.decomposed:
        count = plan.ranks[decomposed.part]
        if count is None:
            continue
        layer = same.get_submodule(decomposed.name)
        u, s, vt = torch.linalg.svd(layer.weight.data, full_matrices=False)
        rank = decomposed.rank
        split = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]
        kept = decomposed.found.units.order[:count]
        split[kept] = layer.weight.data[kept]
        mean = analysis.moments[decomposed.name].mean("input_sum")
        layer.bias.data += (layer.weight.data - split) @ mean
        layer.weight.data = split
    torch.testing.assert_close(outputs(small, data), outputs(same, data), rtol=1e-9, atol=1e-9)
    predicted = sum(curve.dense.parameters - curve.cost(plan.ranks[curve.name]) for curve in analysis.curves)
    assert parameter_count(model) - parameter_count(small) == predicted


def test_one_threshold_on_the_rows_of_all_layers() -> None:
    """But for what fills the budget up, less than the widest row, and the one row that every layer has."""
    analysis = analyse(tiny(), images(16).split(8), "losparse0")
    plan = analysis.plan(0.3)
    kept, gone, widest = [], [], 0
    for decomposed, curve in zip(analysis.decomposed, analysis.curves, strict=True):
        scores, count, width = decomposed.found.units.loss[:-1].tolist(), plan.ranks[curve.name], curve.unit.parameters
        if count is not None:
            kept += [(score, width) for score in scores[1:count]]
            gone += scores[count:]
            widest = max(widest, width)
    assert sum(width for score, width in kept if score < max(gone)) < widest


def test_rows_are_scored_by_what_they_hold_times_its_slope() -> None:
    """W has rank one but for two rows; the steeper one comes first, though it is the smaller."""
    weight = torch.outer(torch.arange(1.0, 5.0), torch.ones(6)).double()
    rest = torch.zeros(4, 6).double()
    rest[:, 2], rest[:, 5] = torch.tensor([2.0, -1, 0, 0]), torch.tensor([0.2, -0.1, 0, 0])
    slopes = torch.ones(4, 6).double()
    slopes[:, 5] = 100.0
    found = PlatonRows()(weight + rest, 1, Moments(2, 2, {"gradient_abs": 2 * slopes}))
    assert found.units.order[:2].tolist() == [5, 2]
    left = weight + rest - found.u @ found.v.T
    assert torch.linalg.matrix_rank(found.u @ found.v.T) == 1
    torch.testing.assert_close(found.units.loss[0], (left.abs() * slopes)[:, 5].mean())
    assert found.units.loss[-1] == 0


def test_slopes_are_those_of_each_image() -> None:
    """Autograd's gradient of the weight by the loss of every image alone, its magnitudes added up."""
    generator = torch.Generator().manual_seed(0)
    x, slopes = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 2, generator=generator)
    truth = torch.zeros(4, 2)
    for image in range(3):
        weight = torch.zeros(4, 2, requires_grad=True)
        (slopes[image] * (x[image] @ weight)).sum().backward()
        truth += weight.grad.abs()
    sums = {}
    seen = Seen(Site("layer", 4, 2, bias=False), Batch(images=3), x, slopes, 0.0, gradient=slopes)
    gradient_abs(seen, type("Sums", (), {"add": staticmethod(sums.__setitem__)})())
    torch.testing.assert_close(sums["gradient_abs"], truth)
