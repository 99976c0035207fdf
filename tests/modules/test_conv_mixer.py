"""A mixer that shares attention's weights: one position after another by hand, its cost, its file, and what it refuses."""

import pytest
import torch
from torch import nn

from lowrank_vit.modules.conv_mixer import KERNELS, ConvMixer, mixer_cost, shared_weights
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from tests.support.layer import drawn
from tests.support.models import tiny


@pytest.mark.parametrize("kernel", [1, 3])
def test_it_is_the_sum_over_neighbours_of_mixed_heads(kernel: int) -> None:
    """Each patch, its neighbours one by one, by a mixture of heads of its own for each place."""
    values, biases, outputs_, mixture = drawn(2, 3, 6), drawn(2, 3), drawn(6, 2, 3), 0.01 * drawn(2, 9)
    up_bias, x = drawn(6), drawn(2, 1 + 9, 6, seed=1)
    mixer = ConvMixer.of(*shared_weights(values, biases, outputs_, mixture, kernel), up_bias)
    pi = (mixture / 0.01).softmax(0)
    expected = x.clone()
    for row in range(3):
        for column in range(3):
            inner, whole = torch.zeros(2, 3).double(), torch.zeros(2).double()
            for place in range(9) if kernel == 3 else (4,):
                r, c = row + place // 3 - 1, column + place % 3 - 1
                weight = sum(pi[head, place] * values[head] for head in range(2))
                inner = inner + sum(pi[head, place] * biases[head] for head in range(2))
                whole = whole + pi[:, place]
                if 0 <= r < 3 and 0 <= c < 3:
                    inner = inner + x[:, 1 + 3 * r + c] @ weight.T
            up = sum(whole[head] * outputs_[:, head] for head in range(2))
            expected[:, 1 + 3 * row + column] = inner.relu() @ up.T + up_bias
    torch.testing.assert_close(mixer(x), expected, rtol=1e-12, atol=1e-12)


def mixed(kernel: int, model: nn.Module | None = None) -> nn.Module:
    model = model or tiny()
    model.blocks[1].attn = ConvMixer(16, 8, kernel)
    return model


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_costs_what_is_counted(kernel: int) -> None:
    small, dense = mixed(kernel), tiny()
    parameters, macs = mixer_cost(16, 8, kernel, 16)
    assert sum(each.numel() for each in small.blocks[1].attn.parameters()) == parameters
    attention = parameter_count(dense.blocks[1].attn)
    assert parameter_count(small) == parameter_count(dense) - attention + parameters
    whole = multiply_accumulates(dense, input_size(dense))
    assert multiply_accumulates(small, input_size(dense)) == whole - (17 * 4 * 16 * 16 + 2 * 17 * 17 * 16) + macs
