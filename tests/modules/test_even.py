"""The form for a GPU computes the same, in float64, and its widths are multiples of 8."""

import copy

import pytest
import torch
from torch import nn

from lowrank_vit import compress, fewer_tokens, for_inference, quantize
from lowrank_vit.modules.even import PackedAttention
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SmallMlp
from tests.support.cases import few, in_turn
from tests.support.models import KINDS, distance, images, outputs, small_vit, tiny

RECIPES = ["best", "heads", "exact", "paper", "vtp-taylor", "comcat", "corp"]


def small(kind: str, recipe: str) -> nn.Module:
    return compress(tiny(kind), images(24, kind).split(8), recipe, 0.4)[0].double()


@pytest.mark.parametrize(("recipe", "kind"), few(in_turn(RECIPES * 2, [*KINDS, KINDS[1], KINDS[0]]), 4))
def test_the_outputs_are_the_same_and_all_widths_even(recipe: str, kind: str) -> None:
    model = small(kind, recipe)
    before, data = copy.deepcopy(model), images(8, kind).double()
    even = for_inference(model)
    assert distance(even, model, data) < 1e-12
    assert distance(model, before, data) == 0
    assert not any(type(module) is LowRankAttention for module in even.modules())
    widths = [module.fc2.in_features for module in even.modules() if isinstance(module, SmallMlp)]
    widths += [
        module.proj.in_features // len(module.live) for module in even.modules() if isinstance(module, PackedAttention)
    ]
    assert not any(width % 8 for width in widths)
    assert widths or recipe in ("exact", "paper", "vtp-taylor")


@pytest.mark.parametrize("widths", [((0, 5), (0, 3)), ((0, 5), (2, 0)), ((8, 8), (8, 8)), ((1, 9), (0, 17))])
def test_heads_of_any_widths(widths: tuple[tuple[int, int], tuple[int, int]]) -> None:
    torch.manual_seed(0)
    attention, x = LowRankAttention(16, *widths, 0.3).double(), torch.randn(3, 5, 16).double()
    even = for_inference(attention)
    assert (even(x) - attention(x)).abs().max() < 1e-12
    assert even.qkv.out_features == 3 * 8 * -(-max(*widths[0], *widths[1]) // 8) * len(attention.live)


def test_merged_tokens_and_few_bits() -> None:
    data = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = compress(small_vit(), data.split(8), "heads", 0.4)[0]
    merged = fewer_tokens(model, "tome", r=1)
    assert distance(for_inference(merged).double(), merged.double(), data.double()) < 1e-5  # merges are near ties
    rounded = quantize(model, 4)[0]
    assert distance(for_inference(rounded), rounded, data) < 1e-5
    assert outputs(for_inference(rounded).bfloat16(), data.bfloat16()).isfinite().all()  # all layers of one type
