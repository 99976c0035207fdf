"""A layer that makes some of its outputs: the masked layer, wherever it stands, and nothing that cannot be one."""

import pytest
import torch
from torch import nn

from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.partial_linear import ScatterOutput
from tests.support.cases import in_turn


@pytest.mark.parametrize(("bias", "kept"), in_turn([True, False], [[0, 2, 3], [4], [], [0, 1, 2, 3, 4]]))
def test_it_is_the_layer_with_zeros_in_the_other_outputs(bias: bool, kept: list[int]) -> None:
    linear, x = nn.Linear(3, 5, bias=bias).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    small, mask = ScatterOutput.of(linear, torch.tensor(kept, dtype=torch.long)), torch.zeros(5, dtype=torch.float64)
    mask[kept] = 1
    torch.testing.assert_close(small(x), linear(x) * mask, rtol=1e-14, atol=1e-14)
    assert sum(parameter.numel() for parameter in small.parameters()) == len(kept) * (3 + bias)
    assert list(small.state_dict()) == (
        ["up.weight", "up.bias"] if bias else ["up.weight"]
    )  # indices are in its config


def test_it_is_made_again_from_its_entry() -> None:
    model = nn.Sequential(ScatterOutput.of(nn.Linear(3, 5), torch.tensor([1, 4])))
    entry = replacement_entries(model)["0"]
    assert entry == {"kind": "scatter", "in_features": 3, "out_features": 5, "kept": [1, 4], "bias": True}
    again = nn.Sequential(empty_replacement(entry, nn.Linear(3, 5)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(again(x), model(x))
