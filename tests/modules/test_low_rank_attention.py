"""Attention with heads of unequal widths, by its definition."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit.modules.low_rank_attention import Heads, LowRankAttention


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
