"""Layers of values and outputs with fewer directions, by their definition."""

import torch
from torch import nn

from lowrank_vit.modules.low_rank_attention import Heads, relative_positions
from lowrank_vit.modules.narrow_values import NarrowOutput, NarrowValues, balance_values


def test_heads_are_filled_and_picked() -> None:
    heads, x = Heads([3, 0, 2], 4), torch.arange(1.0, 6.0)
    filled = heads.fill(x)
    assert filled.tolist() == [1, 2, 3, 0, 0, 0, 0, 0, 4, 5, 0, 0]
    assert torch.equal(heads.pick(filled), x)


def test_queries_and_keys_come_first_and_lost_values_are_zero() -> None:
    """Two outputs that stay, then two heads of three values, of which two and one are left."""
    layer = NarrowValues(4, 8, 2, [2, 1], bias=True)
    x = torch.randn(5, 4)
    made, y = layer.linear(x), layer(x)
    assert torch.equal(y[:, :4], made[:, :4])
    assert torch.equal(y[:, 5], made[:, 4])
    assert not y[:, [4, 6, 7]].any()


class Pair(nn.Module):
    """Values that go straight to the output."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.values, self.outputs = NarrowValues(4, 8, 2, [2, 1], bias), NarrowOutput(6, 5, [2, 1])


def test_balanced_directions_make_the_same_output() -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        pair, x = Pair(bias).double(), torch.randn(3, 4, dtype=torch.float64)
        pair.outputs.up.weight.data *= 1e-3
        with torch.no_grad():
            before, rest = pair.outputs(pair.values(x)[:, 2:]), pair.values(x)[:, :2]
            balance_values(pair)
            torch.testing.assert_close(pair.outputs(pair.values(x)[:, 2:]), before, rtol=1e-12, atol=1e-15)
            assert torch.equal(pair.values(x)[:, :2], rest)
        sizes = pair.values.linear.weight[2:].square().mean(1), pair.outputs.up.weight.square().mean(0)
        torch.testing.assert_close(*sizes)


def test_a_class_token_has_positions_of_its_own() -> None:
    """A window of 1 x 2 has three relative positions, 0 to 2; then queries, keys and both of the class token."""
    assert relative_positions(1, 2).tolist() == [[1, 0], [2, 1]]
    assert relative_positions(1, 2, class_token=True).tolist() == [[5, 3, 3], [4, 1, 0], [4, 2, 1]]
