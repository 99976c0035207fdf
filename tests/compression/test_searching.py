"""Sizes before they are made: what plans cost is what models have, and the search ends at the last size that is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, analyse
from lowrank_vit.compression import smallest as searching
from lowrank_vit.compression.outlook import outlook
from lowrank_vit.compression.smallest import points_lost, smallest
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.models import images, outputs, tiny


@pytest.mark.parametrize("recipe", ["exact", "best"])
def test_the_outlook_costs_what_compressing_costs(recipe: str) -> None:
    analysis = analyse(tiny(), images(24).split(8), recipe, device="cpu")
    told = outlook(analysis, [0.2, 0.4, 0.999], "macs")
    assert "out of reach" in told["sizes"][2]["reason"]
    assert told["dense"]["parameters"] == parameter_count(analysis.model)
    losses = [size["predicted_loss"] for size in told["sizes"][:2]]
    assert 0 < losses[0] < losses[1]
    unmeasured = analyse(tiny(), images(24).split(8), analysis.recipe.but(measured=0), device="cpu")
    small, report = unmeasured.compress(0.4, cost="macs")
    size = told["sizes"][1]
    assert size["parameters"] == parameter_count(small) == report["params"]["compressed"]
    assert size["macs"] <= 0.6 * told["dense"]["macs"]
    padding = 1.0 if recipe == "exact" else 1.1  # heads of unequal widths are padded to one width
    assert size["macs"] <= multiply_accumulates(small, (1, 8, 8)) <= padding * size["macs"]
    assert size["bytes"] == 4 * size["parameters"]


def test_a_comparison_counts_by_hand() -> None:
    dense, small = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    dense.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    small.weight.data = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # the second class where the first input is positive
    x, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [5.0, 1.0]]), torch.tensor([0, 1, 1, 1])
    seen = compare(dense, small, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert (seen["n"], seen["agreement"]) == (4, 25.0)  # dense: 0 1 1 0; small: 1 0 1 1, where equal logits are class 0
    assert (seen["top1_dense"], seen["top1"]) == (75.0, 50.0)
    p, q = (model(x).detach().double().softmax(-1) for model in (dense, small))
    assert seen["kl"] == pytest.approx(float((p * (p / q).log()).sum() / 4))
    assert compare(dense, small, [x])["top1"] is None
    assert compare(dense, small, [(x, labels - 2)])["top1"] is None
    with pytest.raises(InputError, match="no images"):
        compare(dense, small, [])


def test_points_are_lost_of_top1_or_where_there_are_no_labels_of_agreement() -> None:
    assert points_lost({"top1": 80.5, "top1_dense": 82.0, "agreement": 90.0}) == 1.5
    assert points_lost({"top1": 83.0, "top1_dense": 82.0, "agreement": 90.0}) == -1.0  # a gain
    assert points_lost({"top1": None, "top1_dense": None, "agreement": 90.0}) == 10.0


def test_the_search_ends_at_the_last_size_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loss of 100 points for all, a threshold in the reductions is found to within 1/64 of their range."""
    analysis = analyse(tiny(), images(16).split(8), "svd", device="cpu")

    def lost(dense: nn.Module, small: nn.Module, batches: object, **options: object) -> dict[str, object]:
        share = 1 - parameter_count(small) / parameter_count(dense)
        return {"n": 9, "agreement": 100.0 if share <= 0.37 else 0.0, "kl": 0.0, "top1": None, "top1_dense": None}

    monkeypatch.setattr(searching, "compare", lost)
    small, report, trials = smallest(analysis, 1.0, [])
    assert len(trials) == 6
    assert 0.34 < report["params"]["reduction"] <= 0.37
    assert report["params"]["reduction"] == max(trial.reduction for trial in trials if trial.lost <= 1)
    assert outputs(small, images(2)).shape == (2, 10)
    small, report, trials = smallest(analysis, 1.0, [], within="macs=0.8")
    assert [trials[0].reduction < 0.3, len(trials)] == [True, 7]  # the budget alone comes first
    assert 0.34 < report["params"]["reduction"] <= 0.37
    [macs] = report["budget"]["also"] if report["budget"]["cost"] != "macs" else [report["budget"]]
    assert macs["counted"] <= macs["limit"]
    with pytest.raises(InputError, match=r"loses 100\.00 points on 9 images: raise the budget or --max-loss"):
        smallest(analysis, 1.0, [], within="macs=0.5")
    monkeypatch.setattr(searching, "points_lost", lambda measured: 50.0)
    with pytest.raises(
        InputError, match=r"even a reduction of 0.0\d+ loses 50.00 points on 9 images: raise --max-loss"
    ):
        smallest(analysis, 1.0, [])
    with pytest.raises(InputError, match="from 0 to 100"):
        smallest(analysis, float("nan"), [])
