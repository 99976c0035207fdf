"""The patch embedding as a linear layer, against torch's convolution."""

import pytest
import torch
from torch import nn

from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.embeddings import Patches, is_plain


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
