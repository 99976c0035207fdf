"""LoSparse: ``U V^T`` and whole rows beside it, chosen for the whole model, folded to what they say."""

from __future__ import annotations

import copy

import pytest
import torch

from lowrank_vit import InputError, analyse, get_recipe
from lowrank_vit.methods.losparse import PlatonRows
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.records.factors import split_rank
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.stages.calibrate.statistics import Batch, Seen, gradient_abs
from tests.support.models import KINDS, images, outputs, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_folded_is_the_split_weight(kind: str) -> None:
    """Of each layer: its truncated SVD, its own weight where a row was kept, and the mean of the rest in the bias."""
    model, data = tiny(kind).double(), images(16, kind).double()
    analysis = analyse(model, data.split(8), "losparse0")
    plan = analysis.plan(0.3)
    small, _ = analysis.apply(plan)
    same = copy.deepcopy(model)
    for decomposed in analysis.decomposed:
        count = plan.ranks[decomposed.unit.part]
        if count is None:
            continue
        layer = same.get_submodule(decomposed.unit.name)
        u, s, vt = torch.linalg.svd(layer.weight.data, full_matrices=False)
        rank = decomposed.unit.rank
        split = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]
        kept = decomposed.found.units.order[:count]
        split[kept] = layer.weight.data[kept]
        mean = analysis.moments[decomposed.unit.name].mean("input_sum")
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


def test_ranks_are_the_share_rounded_up() -> None:
    assert [split_rank(n, d, 0.05) for n, d in ((192, 768), (16, 48), (100, 100))] == [8, 1, 3]
    assert split_rank(100, 100, 0.06) == 3


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        get_recipe("losparse0").but(**{"rows.share": share})
