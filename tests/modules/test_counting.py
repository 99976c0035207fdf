"""Products are counted as Appendix A counts them."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import compress
from lowrank_vit.modules.counting import multiply_accumulates
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.stages.compensate import empty_module
from tests.support.models import images, tiny


def macs_of(module: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("n", "k", "m", "r", "q"), [(197, 192, 576, 100, 7), (49, 768, 192, 20, 1)])
def test_appendix_a(n: int, k: int, m: int, r: int, q: int) -> None:
    """Equations (14) and (15): Z beside the factors and Z folded into them are the same products."""
    x = torch.randn(1, n, k)
    assert macs_of(nn.Linear(k, m), x) == n * k * m
    z = empty_module("low_rank", in_features=k, out_features=m, rank=q)
    assert macs_of(LowRankLinear(k, m, r, correction=z), x) == n * k * r + n * r * m + n * k * q + n * q * m
    assert macs_of(LowRankLinear(k, m, r + q), x) == n * k * (r + q) + m * n * (r + q)


def test_a_whole_model_by_hand() -> None:
    """Patches, then for each block attention's logits and mixtures and its linear layers, then the head."""
    tokens, width, hidden, patches, depth = 17, 16, 64, 16, 2
    linears = tokens * width * (3 * width + width + 2 * hidden)
    dense = patches * 4 * width + depth * (2 * tokens**2 * width + linears) + width * 10
    assert multiply_accumulates(tiny(), (1, 8, 8)) == dense
    small, report = compress(tiny(), [images(12)], "exact", 0.3)
    saved = 0
    for layer in report["layers"]:
        n, d, rank = layer["in_features"], layer["out_features"], layer["rank"]
        saved += 0 if rank is None else tokens * (n * d - rank * (n + d))
    assert saved > 0
    assert multiply_accumulates(small, (1, 8, 8)) == report["macs"]["compressed"] == dense - saved
