"""Packed codes: no bit is lost, and none wasted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_vit.modules.quantized_linear import pack, packed_bytes, unpack


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
