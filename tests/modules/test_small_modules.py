"""Packed codes, in which no bit is lost; patches and positions as matrices; products counted as in Appendix A."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_vit import compress
from lowrank_vit.modules.counting import multiply_accumulates, parameter_count
from lowrank_vit.modules.embeddings import Patches, Positions, is_plain
from lowrank_vit.modules.low_rank_linear import LowRankLinear
from lowrank_vit.modules.quantized_linear import pack, packed_bytes, unpack
from lowrank_vit.modules.surgery import exchanged, part, replace_module
from lowrank_vit.stages.compensate import empty_module
from tests.support.models import images, tiny


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(range(1, 9)), st.integers(0, 67))
def test_packing_loses_nothing(data: st.DataObject, bits: int, count: int) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)))
    codes = codes.to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(count, bits)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_packed_codes_take_just_their_bits() -> None:
    for bits in (2, 3, 8):
        assert packed_bytes(64, bits) == 8 * bits
        for count in range(64):
            parts = bin(bits).count("1")  # each part may leave bits of its last byte unused
            assert count * bits / 8 <= packed_bytes(count, bits) < count * bits / 8 + parts


@pytest.mark.parametrize(("size", "bias"), [((8, 9), True), ((11, 8), False)])  # three rows and two columns over
def test_it_is_the_convolution(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    convolution, images = nn.Conv2d(2, 5, (4, 3), stride=(4, 3), bias=bias).double(), torch.randn(3, 2, *size).double()
    patches = Patches.of(convolution)
    assert is_plain(convolution)
    assert parameter_count(patches) == 5 * 2 * 4 * 3 + 5
    torch.testing.assert_close(patches(images), convolution(images))
    made = Patches.empty(patches.config, convolution).double()
    made.load_state_dict(patches.state_dict())
    assert made(images).equal(patches(images))


class Adding(nn.Module):
    """A model with a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


def product() -> tuple[Positions, Tensor]:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 4))
    return Positions.product(u, v, u), u @ v.T


def test_it_is_added_as_the_product() -> None:
    model, x = Adding(), torch.randn(3, 5, 4).double()
    before = model(x)
    positions, table = product()
    replace_module(model, "pos_embed", positions)
    torch.testing.assert_close(model(x), x + table)
    torch.testing.assert_close(torch.cat([positions, x[:1]]), torch.cat([table[None], x[:1]]))  # type: ignore[list-item]
    assert parameter_count(model) == 5 * 2 + 2 * 4
    assert positions.shape == (1, 5, 4)
    with exchanged(model, "pos_embed", Positions.of(before[:1] - x[:1])):
        torch.testing.assert_close(model(x), before)
    assert part(model, "pos_embed") is positions
    torch.testing.assert_close(positions.rows.T @ positions.rows, positions.columns @ positions.columns.T)  # balanced


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
