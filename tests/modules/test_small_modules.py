"""Packed codes, in which no bit is lost and none wasted; patches and positions as matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.embeddings import Patches, Positions, is_plain
from lowrank_vit.modules.quantized_linear import pack, packed_bytes, unpack
from lowrank_vit.modules.surgery import exchanged, part, replace_module


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(range(1, 9)), st.integers(0, 67))
def test_packing_loses_nothing(data: st.DataObject, bits: int, count: int) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)))
    codes = codes.to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(count, bits)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_packed_codes_take_just_their_bits(bits: int) -> None:
    assert packed_bytes(64, bits) == 8 * bits
    for count in range(64):
        parts = bin(bits).count("1")  # each part may leave bits of its last byte unused
        assert count * bits / 8 <= packed_bytes(count, bits) < count * bits / 8 + parts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 9), (11, 8)])  # the second leaves three rows and two columns over
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
