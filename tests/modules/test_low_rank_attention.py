"""Attention with heads of unequal widths, and layers of values and outputs with fewer directions, by their definitions."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit.modules.low_rank_attention import Heads, LowRankAttention, relative_positions
from lowrank_vit.modules.narrow_values import NarrowOutput, NarrowValues, balance_values


def test_ragged_heads_split_and_join() -> None:
    heads, x = Heads([3, 0, 2], 4), torch.randn(2, 4, 5)
    split = heads.split(x)
    assert split.shape == (2, 3, 4, 4)
    assert torch.equal(split[:, 0, :, :3], x[..., :3])
    assert torch.equal(split[:, 2, :, :2], x[..., 3:])
    assert split[:, 1].abs().sum() == split[:, 2, :, 2:].abs().sum() == split[:, 0, :, 3].abs().sum() == 0
    assert torch.equal(heads.join(split), x)
    equal, x = Heads([3, 3], 3), torch.randn(2, 4, 6)
    assert torch.equal(equal.split(x)[:, 1], x[..., 3:])
    assert torch.equal(equal.join(equal.split(x)), x)


def test_heads_of_unequal_widths_are_softmax_attention() -> None:
    """Head by head, by its definition, with a scale that is nobody's default; one head passes nothing on."""
    torch.manual_seed(0)
    module = LowRankAttention(6, [3, 1, 2], [2, 4, 0], scale=0.37).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        q, (k, v) = module.query(x), module.key_value(x).split([6, 6], -1)
        heads = zip(q.split([3, 1, 2], -1), k.split([3, 1, 2], -1), v.split([2, 4, 0], -1), strict=True)
        mixed = [(0.37 * q @ k.mT).softmax(-1) @ v for q, k, v in heads]
        truth = torch.cat(mixed, -1) @ module.proj.weight.T + module.proj.bias
        torch.testing.assert_close(module(x), truth)


def test_balanced_directions_of_the_same_attention() -> None:
    """The vectors of a direction have one size, one that nothing reads stays finite, and the output is the same."""
    torch.manual_seed(0)
    module = LowRankAttention(6, [3, 1], [2, 4], scale=0.37).double()
    module.proj.weight.data *= 1e-3
    module.key_value.weight.data[1] = 0
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)
        module.balance()
        torch.testing.assert_close(module(x), before, rtol=1e-12, atol=1e-15)
    keys, values = (rows.square().mean(1) for rows in module.key_value.weight.split([4, 6]))
    torch.testing.assert_close(values, module.proj.weight.square().mean(0))
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(keys[others], module.query.weight.square().mean(1)[others])
    assert keys[1] == 0


def test_a_head_of_no_directions_costs_nothing() -> None:
    """Three heads, the second of width 0: the products are those of two heads, and the output is the same attention."""
    torch.manual_seed(0)
    three = LowRankAttention(6, [2, 0, 2], [2, 0, 2], scale=0.5, window_size=(1, 5)).double()
    two = LowRankAttention(6, [2, 2], [2, 2], scale=0.5, window_size=(1, 5)).double()
    for parameter in two.parameters():
        torch.nn.init.normal_(parameter)
    three.load_state_dict(two.state_dict())  # of equal shapes: the table of position biases has no column for it
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(three(x), two(x), rtol=0, atol=0)
        shared = torch.randn(3, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(
            three(x, shared_rel_pos_bias=shared), two(x, shared_rel_pos_bias=shared[[0, 2]]), rtol=0, atol=0
        )
    counts = []
    for module in (three, two):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert len(three.config["value"]) == 3  # type: ignore[arg-type]  # the dense module's heads are still known


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


def test_balanced_values_make_the_same_output() -> None:
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
