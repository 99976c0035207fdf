"""Merged, fused and selected tokens: worked by hand, against their definitions, and dropped tokens against masked ones."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank_vit.modules import empty_replacement, replacement_entries
from lowrank_vit.modules.token_block import (
    HeadLinear,
    SelectingBlock,
    TokenSelector,
    fused,
    masked,
    merged,
    merged_by_energy,
    packed,
)
from tests.support.layer import drawn
from tests.support.models import images, tiny


def with_sizes(*tokens: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([[[value, size] for value, size in tokens]], dtype=torch.float64)


def test_the_most_similar_pair_is_merged_by_hand() -> None:
    """Tokens 0 (the class token), 2 and 4 look for a partner among 1 and 3; 2 and 3 have the same key."""
    x = with_sizes((9, 1), (1, 1), (2, 1), (6, 3), (5, 1))
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 2], [1, 1]]]).double()
    found = merged(x, keys, 1)
    assert found[0].tolist() == [[9, 1], [5, 1], [1, 1], [5, 4]]  # (2 x 1 + 6 x 3) / 4 = 5, of size 4
    assert merged(x, keys, 9).shape == (1, 3, 2)  # no more than half of the patches
    assert merged(x, keys, 0) is x


def test_the_tokens_of_most_energy_are_merged_by_hand() -> None:
    """Keys at 0, 10, 20 and 90 degrees: the second has the most energy, then the third, which is nearer to the last."""
    x = with_sizes((9, 1), (1, 1), (2, 1), (6, 3), (5, 1))
    angles = torch.tensor([45.0, 0, 10, 20, 90]).double().deg2rad()
    keys = torch.stack([angles.cos(), angles.sin()], -1)[None]
    found = merged_by_energy(x, keys, 1, 1, margin=0.5)
    assert found[0].tolist() == [[9, 1], [1, 1], [5, 1], [pytest.approx(5), 4]]
    found = merged_by_energy(x, keys, 2, 1, margin=0.5)  # the first is a source now, and joins the third, too
    assert found[0].tolist() == [[9, 1], [pytest.approx(21 / 5), 5], [5, 1]]
    assert merged_by_energy(x, keys, 9, 1, margin=0.5).shape == (1, 3, 2)
    assert merged_by_energy(x, keys, 0, 1, margin=0.5) is x


@pytest.mark.parametrize(("prefix", "merge"), [(2, merged), (1, partial(merged_by_energy, margin=0.3))])
def test_sizes_add_up_and_sums_are_kept(prefix: int, merge: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, keys = torch.rand(3, 12, 5, generator=generator).double(), torch.randn(3, 12, 4, generator=generator).double()
    found = merge(x, keys, 4, prefix)
    assert found.shape == (3, 8, 5)
    torch.testing.assert_close(found[..., -1].sum(1), x[..., -1].sum(1))
    weighted = [(each[..., :-1] * each[..., -1:]).sum(1) for each in (found, x)]
    torch.testing.assert_close(*weighted)
    for place in range(prefix):  # before the patches: as they were, in no other token
        assert (found == x[:, None, place][:, :1]).all(-1).any(1).all()


def test_unattended_tokens_are_fused_by_hand() -> None:
    x = torch.tensor([[[9.0], [1], [2], [3], [4]]]).double()
    attention = torch.tensor([[0.1, 0.4, 0.05, 0.3]]).double()
    assert fused(x, attention, 2)[0, :, 0].tolist() == pytest.approx([9, 2, 4, 0.1 * 1 + 0.05 * 3])
    assert fused(x, attention, 3) is x  # one token fused into one saves nothing


def test_a_package_is_the_weighted_mean_of_what_is_dropped_by_hand() -> None:
    x = torch.tensor([[[1.0], [2], [4], [8]]])
    kept = torch.tensor([[[0.9], [0.1], [0.3], [0.5]]])
    dropped = torch.tensor([[[0.0], [1], [1], [0]]])
    assert packed(x, kept, dropped).item() == pytest.approx((0.1 * 2 + 0.3 * 4) / 0.4)
    assert packed(x, kept, torch.zeros_like(dropped)).item() == 0  # nothing is dropped


def test_scores_are_those_of_heads_one_by_one() -> None:
    """The equations for one head after the other, tokens that are gone counting nowhere in the mean."""
    selector, x = TokenSelector(12, 3).double(), drawn(2, 5, 12)
    for each in selector.parameters():
        each.data += 0.3 * drawn(*each.shape, seed=each.numel())
    kept = torch.tensor([[1.0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]).double()[..., None]
    means = torch.stack([x[..., 4 * head : 4 * head + 4].mean(-1) for head in range(3)], -1)
    weights, total = selector.weigh(means), 0.0
    for head in range(3):

        def through(layer: HeadLinear, y: Tensor, head: int = head) -> Tensor:
            return y @ layer.weight[head] + layer.bias[head]

        normed = F.layer_norm(x[..., 4 * head : 4 * head + 4], (4,)) * selector.scale[head] + selector.shift[head]
        features = F.gelu(through(selector.hidden, normed))
        mean = (features[..., 2:] * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        y = torch.cat([features[..., :2], mean.expand(-1, 5, -1)], -1)
        for layer in selector.score:
            y = through(layer, y) if isinstance(layer, HeadLinear) else layer(y)
        total = total + y.softmax(-1) * weights[..., head : head + 1]
    torch.testing.assert_close(selector(x, kept), total / weights.sum(-1, keepdim=True), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(selector(x).sum(-1), torch.ones(2, 5).double())


@pytest.mark.parametrize("packages", [0, 2])
def test_dropped_tokens_are_those_that_masked_ones_are(packages: int) -> None:
    """A real drop of all but the best patches: the class token, kept patches and packages see what they see under a mask."""
    block = SelectingBlock(tiny().blocks[1], 16, 2, count=3, packages=packages).double().eval()
    x = drawn(2, 1 + 8 + packages, 16)
    scores = block.selector(x[:, 1:])[:, :8, :1]
    best = scores[..., 0].topk(3).indices.sort(-1).values
    stays = torch.zeros(2, 8, 1).double().scatter(1, best[..., None], 1.0)
    whole = torch.cat([x, packed(x[:, 1:9], scores, 1 - stays)], 1)
    mask = torch.cat([torch.ones(2, 1, 1), stays, torch.ones(2, packages + 1, 1)], 1)
    seen = masked(block, whole, mask)
    small = block(x)
    assert small.shape == (2, 1 + 3 + packages + 1, 16)
    kept = torch.stack([seen[image][mask[image, :, 0] > 0] for image in range(2)])
    torch.testing.assert_close(small, kept, rtol=1e-7, atol=1e-7)


def test_masked_tokens_have_the_slope_of_being_seen_a_little() -> None:
    """By a difference: the class token's output where a masked token counts 1e-5 times."""
    block, x = tiny().blocks[1].double(), drawn(1, 6, 16)
    kept = torch.tensor([1.0, 1, 0, 1, 0, 1]).double()[None, :, None].requires_grad_()
    masked(block, x, kept)[0, 0].sum().backward()
    assert kept.grad is not None
    for place in (2, 4):
        little = kept.detach().clone()
        little[0, place] = 1e-5
        change = masked(block, x, little)[0, 0].sum() - masked(block, x, kept.detach())[0, 0].sum()
        assert kept.grad[0, place].item() == pytest.approx(change.item() / 1e-5, rel=1e-3)
        assert abs(change.item()) > 1e-9


def test_it_is_made_again_from_its_entry() -> None:
    model = tiny()
    model.blocks[1] = SelectingBlock(model.blocks[1], 16, 2, count=5)
    entry = replacement_entries(model)["blocks.1"]
    assert entry == {"kind": "selecting", "width": 16, "heads": 2, "count": 5, "packages": 0}
    again = tiny(seed=1)
    again.blocks[1] = empty_replacement(entry, again.blocks[1])
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images(2)), model(images(2)))
