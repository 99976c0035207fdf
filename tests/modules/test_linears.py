"""Linear layers with identities that are not stored, and with some of their inputs or outputs."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.partial_linear import ScatterOutput, SelectInput
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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [SelectInput, ScatterOutput])
def test_it_is_the_layer_with_zeros_in_the_others(kind: type[SelectInput] | type[ScatterOutput], bias: bool) -> None:
    selects = kind is SelectInput
    for kept in ([0, 2, 3], [4], [0, 1, 2, 3, 4], *([] if selects else [[]])):
        linear = nn.Linear(*((5, 3) if selects else (3, 5)), bias=bias).double()
        x, mask = torch.randn(2, 7, linear.in_features, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        mask[kept] = 1
        small = kind.of(linear, torch.tensor(kept, dtype=torch.long))
        masked = linear(x * mask) if selects else linear(x) * mask
        torch.testing.assert_close(small(x), masked, rtol=1e-14, atol=1e-14)
        count = 3 * (len(kept) + bias) if selects else len(kept) * (3 + bias)
        assert sum(parameter.numel() for parameter in small.parameters()) == count
        assert list(small.state_dict()) == ["up.weight", "up.bias"][: 1 + bias]  # indices are in its config


@pytest.mark.parametrize(("name", "kind"), [("select", SelectInput), ("scatter", ScatterOutput)])
def test_a_partial_layer_is_made_again_from_its_entry(name: str, kind: type[SelectInput] | type[ScatterOutput]) -> None:
    linear = nn.Linear(5, 5)
    model = nn.Sequential(kind.of(linear, torch.tensor([1, 4])))
    entry = replacement_entries(model)["0"]
    assert entry == {"kind": name, "in_features": 5, "out_features": 5, "kept": [1, 4], "bias": True}
    again, x = nn.Sequential(empty_replacement(entry, linear)), torch.randn(2, 5)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    if kind is SelectInput:
        with pytest.raises(ValueError, match="in_features is 5, of a layer that is given 6"):
            empty_replacement(entry, nn.Linear(6, 5))
