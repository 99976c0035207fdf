"""Linear layers with identities that are not stored."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_pivoted, expand, expanded, pivot

KINDS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: LowRankAttention(6, [3, 0, 2], [2, 4, 0], scale=0.37),
    "linear": lambda: LowRankLinear(6, 5, 3),
}
SAVED = {"attention": 9 + 4 + 4 + 16, "linear": 9}


def wrapped(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(KINDS[kind]()).double()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_outputs_of_fewer_parameters(kind: str) -> None:
    model, x = wrapped(kind), torch.randn(2, 4, 6).double()
    before, truth = sum(p.numel() for p in model.parameters()), model(x)
    assert pivot(model) == {"0": SAVED[kind]}
    assert sum(p.numel() for p in model.parameters()) == before - SAVED[kind]
    torch.testing.assert_close(model(x), truth)
    with pytest.raises(TypeError, match="already"):
        model[0].pivot()  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_is_all_that_is_needed(kind: str) -> None:
    model, x = wrapped(kind), torch.randn(2, 4, 6).double()
    pivot(model)
    torch.manual_seed(1)
    other = nn.Sequential(KINDS[kind]()).double()
    pivot(other)  # other pivots
    other.load_state_dict(model.state_dict())
    assert other(x).equal(model(x))
    assert copy.deepcopy(model)(x).equal(model(x))


def test_a_weight_by_hand() -> None:
    """Two blocks, of two outputs and of one: rows 2 and 0 are passed on, then row 1."""
    layer = PivotedLinear(3, [2, 1])
    layer.load_state_dict({"free": torch.tensor([5.0, 6.0, 7.0, 8.0]), "pivots": torch.tensor([2, 0, 1]).short()})
    assert layer.weight.tolist() == [[0.0, 5.0, 1.0], [1.0, 6.0, 0.0], [7.0, 1.0, 8.0]]
    assert layer(torch.tensor([1.0, 10.0, 100.0])).tolist() == [150.0, 61.0, 817.0]


def test_gradients_reach_the_free_entries_alone() -> None:
    layer, _ = as_pivoted(nn.Linear(6, 4, bias=False).double(), [3, 1])
    x, pull = torch.randn(5, 6).double(), torch.randn(5, 4).double()
    (layer(x) * pull).sum().backward()
    truth = (pull.T @ x)[layer.places >= 2]
    assert layer.free.grad is not None
    torch.testing.assert_close(layer.free.grad, truth)


def test_all_weights_are_trained_within_expanded() -> None:
    model, x = wrapped("attention"), torch.randn(2, 4, 6).double()
    pivot(model)
    truth, count = model(x), sum(p.numel() for p in model.parameters())
    with expanded(model):
        assert not any(isinstance(module, PivotedLinear) for module in model.modules())
        assert sum(p.numel() for p in model.parameters()) == count + SAVED["attention"]
        torch.testing.assert_close(model(x), truth)
        with torch.no_grad():
            model[0].key_value.weight += 0.1  # type: ignore[union-attr,operator]
        trained = model(x)
    assert sum(p.numel() for p in model.parameters()) == count
    torch.testing.assert_close(model(x), trained)
    assert expand(model) == ["0"]
    assert expand(model) == []
