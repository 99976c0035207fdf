"""What is written for other programs is the same function, in float64, with heads of even widths."""

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit import compress, fewer_tokens
from lowrank_vit.compression.recipes import get_recipe
from lowrank_vit.modules.embeddings import Patches
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.stages.export.straightened import EvenAttention, straightened
from tests.support.kinds import KINDS
from tests.support.models import outputs

WALKED = ["vit", "swin", "beit", "beit, shared"]  # bias of positions, masks of windows, a class token


def small(kind: str, **changes: object) -> tuple[nn.Module, Tensor]:
    made, data = KINDS[kind].make(), KINDS[kind].images(6)
    return compress(made, [data], get_recipe("best").but(**changes), 0.4, device="cpu")[0], data


def of(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) is kind]


@pytest.mark.parametrize("kind", WALKED)
def test_the_function_stays(kind: str) -> None:
    model, data = small(kind)
    attentions = of(model, LowRankAttention)
    straight = straightened(model, data.shape[1])
    assert len(of(straight, EvenAttention)) == len(attentions) > 0
    assert not of(straight, LowRankAttention)
    assert len(of(straight, Patches)) == 1
    torch.testing.assert_close(outputs(straight, data), outputs(model, data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("query_key", "value"), [([3, 1, 4], [2, 6, 1]), ([0, 2, 0], [3, 0, 0]), ([0, 0], [3, 1])])
def test_heads_of_any_widths(query_key: list[int], value: list[int]) -> None:
    torch.manual_seed(0)
    attention = LowRankAttention(12, query_key, value, 0.7).double().eval()
    even, x = EvenAttention.of(attention), torch.randn(2, 5, 12, dtype=torch.float64)
    live = sum(any(widths) for widths in zip(query_key, value, strict=True))
    assert even.query.out_features == live * max(1, *query_key)  # not the widest of both, as in torch's fused attention
    assert even.values.out_features == live * max(value)
    torch.testing.assert_close(even(x), attention(x))
    bias = torch.randn(live, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(even(x, attn_mask=bias), attention(x, attn_mask=bias))
    torch.testing.assert_close(even(x, is_causal=True), attention(x, is_causal=True))


@pytest.mark.parametrize(("rule", "options"), [("tome", {"r": 2}), ("evit", {"keep": 0.7})])
def test_with_fewer_tokens(rule: str, options: dict) -> None:
    model, data = small("vit")
    fewer = fewer_tokens(model, rule, **options)
    straight = straightened(fewer, data.shape[1])
    assert of(straight, EvenAttention)
    torch.testing.assert_close(outputs(straight, data), outputs(fewer, data), rtol=1e-9, atol=1e-9)
