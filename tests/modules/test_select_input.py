"""A layer that reads some of its inputs: the masked layer, wherever it stands, and nothing that cannot be one."""

import pytest
import torch
from torch import nn

from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.partial_linear import SelectInput
from tests.support.cases import in_turn


@pytest.mark.parametrize(("bias", "kept"), in_turn([True, False], [[0, 2, 3], [4], [0, 1, 2, 3, 4]]))
def test_it_is_the_layer_with_zeros_in_the_other_columns(bias: bool, kept: list[int]) -> None:
    linear, x = nn.Linear(5, 3, bias=bias).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    small, mask = SelectInput.of(linear, torch.tensor(kept)), torch.zeros(5, dtype=torch.float64)
    mask[kept] = 1
    torch.testing.assert_close(small(x), linear(x * mask), rtol=1e-14, atol=1e-14)
    assert sum(parameter.numel() for parameter in small.parameters()) == 3 * (len(kept) + bias)
    assert list(small.state_dict()) == (
        ["up.weight", "up.bias"] if bias else ["up.weight"]
    )  # indices are in its config


def test_it_is_made_again_from_its_entry() -> None:
    model = nn.Sequential(SelectInput.of(nn.Linear(5, 3), torch.tensor([1, 4])))
    entry = replacement_entries(model)["0"]
    assert entry == {"kind": "select", "in_features": 5, "out_features": 3, "kept": [1, 4], "bias": True}
    again = nn.Sequential(empty_replacement(entry, nn.Linear(5, 3)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 5)
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="in_features is 5, of a layer that is given 6"):
        empty_replacement(entry, nn.Linear(6, 3))
