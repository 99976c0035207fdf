"""Sizes before they are made: what plans cost is what models have, and the search ends at the last size that is allowed."""

import pytest
import torch
from torch import nn

from lowrank_vit import InputError, analyse
from lowrank_vit.compression import smallest as searching
from lowrank_vit.compression.smallest import smallest
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.stages.evaluate.comparison import compare
from tests.support.models import images, outputs, tiny


def test_a_comparison_counts_by_hand() -> None:
    dense, small = (nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)) for _ in range(2))
    dense[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    small[1].weight.data = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # the second class where the first input is positive
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [5.0, 1.0]])[:, :, None, None]  # images of two channels
    labels = torch.tensor([0, 1, 1, 1])
    seen = compare(dense, small, [(x[:3], labels[:3]), (x[3:], labels[3:])])
    assert (seen["n"], seen["agreement"]) == (4, 25.0)  # dense: 0 1 1 0; small: 1 0 1 1, where equal logits are class 0
    assert (seen["top1_dense"], seen["top1"]) == (75.0, 50.0)
    p, q = (model(x).detach().double().softmax(-1) for model in (dense, small))
    assert seen["kl"] == pytest.approx(float((p * (p / q).log()).sum() / 4))
    assert compare(dense, small, [x])["top1"] is None
    assert compare(dense, small, [(x, labels - 2)])["top1"] is None
    with pytest.raises(InputError, match="no images"):
        compare(dense, small, [])


@pytest.mark.slow
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
    with pytest.raises(InputError, match=r"loses 100\.00 points on 9 images: raise the budget or `max_loss=`"):
        smallest(analysis, 1.0, [], within="macs=0.5")
    monkeypatch.setattr(searching, "points_lost", lambda measured: 50.0)
    with pytest.raises(
        InputError, match=r"even a reduction of 0.0\d+ loses 50.00 points on 9 images: raise `max_loss=`"
    ):
        smallest(analysis, 1.0, [])
    with pytest.raises(InputError, match="from 0 to 100"):
        smallest(analysis, float("nan"), [])
