"""VMamba's mixer against float64 loops over channels, and the theorem on the mean of all channels."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.scans import LEFT_OUT, MODES, SS2D, SmallScan
from tests.support.cases import in_turn

SCANNED = [mode for mode in MODES if mode != LEFT_OUT]


def mixer(*, gated: bool, state: int, seed: int = 0) -> SS2D:
    """A mixer with weights that all matter, float64."""
    torch.manual_seed(seed)
    made = SS2D(12, 24 if gated else 12, state, gated=gated, conv_bias=gated).double().eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made.requires_grad_(False)


def orders(height: int, width: int) -> list[list[tuple[int, int]]]:
    """The positions of a map, in the four orders."""
    rows = list(itertools.product(range(height), range(width)))
    columns = [(row, column) for column in range(width) for row in range(height)]
    return [rows, columns, rows[::-1], columns[::-1]]


def reference(module: SS2D, x: Tensor, *, scanned: bool = True) -> Tensor:
    """The mixer's definition, channel by channel and position by position."""
    scan = module.scan
    projected = F.linear(x, module.in_proj.weight)
    u, z = projected.chunk(2, -1) if module.gated else (projected, None)
    u = F.silu(module.conv2d(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    y, (n, r, d) = torch.zeros_like(u), (scan.state, scan.rank, scan.inner)
    for image, k in itertools.product(range(len(u)), range(4)):
        for channel in range(d):
            a = -scan.A_logs[k * d + channel].exp()
            state = torch.zeros(n, dtype=torch.float64)
            for row, column in orders(*u.shape[1:3])[k]:
                here = u[image, row, column]
                made = scan.x_proj_weight[k] @ here
                delta = F.softplus(scan.dt_projs_weight[k, channel] @ made[:r] + scan.dt_projs_bias[k, channel])
                state = (delta * a).exp() * state + delta * here[channel] * made[r : r + n]
                said = made[r + n :] @ state if scanned else 0
                y[image, row, column, channel] += said + scan.Ds[k * d + channel] * here[channel]
    y = F.layer_norm(y, (d,), module.out_norm.weight, module.out_norm.bias, 1e-5)
    return F.linear(y if z is None else y * F.silu(z), module.out_proj.weight)


def smaller(module: SS2D, mode: str, skip: str = "channel", features: str = "none") -> SS2D:
    """The mixer with a smaller scan."""
    module = copy.deepcopy(module)
    scan = SmallScan.of(module.scan, module.out_proj.out_features, mode, skip, features)
    module.scan = scan.requires_grad_(False)
    return module


@pytest.mark.parametrize(("gated", "state"), [(False, 1), (True, 3)])
def test_the_mixer_is_its_definition(gated: bool, state: int) -> None:
    module, x = mixer(gated=gated, state=state), torch.randn(2, 3, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference(module, x), rtol=1e-9, atol=1e-9)
    left_out = smaller(module, LEFT_OUT)
    torch.testing.assert_close(left_out(x), reference(module, x, scanned=False), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(left_out(x), module(x), rtol=0.01)


def spread(module: nn.Module, x: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the scale of what a scan with all channels gives."""
    return float((module(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("mode", SCANNED)
def test_the_mean_of_all_channels_is_a_constant(mode: str) -> None:
    """v2: ``W_out beta``, for every image and token."""
    module, x = mixer(gated=False, state=2), torch.randn(3, 5, 7, 12, dtype=torch.float64)
    small = smaller(module, mode, "mean")
    constant = F.linear(module.out_norm.bias, module.out_proj.weight)
    assert spread(small, x, constant.expand(3, 5, 7, -1)) <= 1e-6
    small.out_norm = nn.Identity()
    assert small(x).var((0, 1, 2)).min() > 1e-3  # without a norm it is no constant


@pytest.mark.parametrize("mode", SCANNED)
def test_the_mean_of_all_channels_leaves_the_gate(mode: str) -> None:
    """v0: ``W_out (beta * SiLU(z))``."""
    module, x = mixer(gated=True, state=16), torch.randn(2, 5, 7, 12, dtype=torch.float64)
    gate = F.silu(module.in_proj(x).chunk(2, -1)[1])
    expected = F.linear(module.out_norm.bias * gate, module.out_proj.weight)
    assert spread(smaller(module, mode, "mean"), x, expected) <= 1e-6


@pytest.mark.parametrize(("gated", "mode"), in_turn([False, True], SCANNED))
def test_with_the_skip_by_channel_it_is_no_scan_at_all(mode: str, gated: bool) -> None:
    module, x = mixer(gated=gated, state=2), torch.randn(2, 5, 7, 12, dtype=torch.float64)
    written, left_out = smaller(module, mode), smaller(module, LEFT_OUT)
    assert spread(written, x, left_out(x)) <= 1e-9
    for each in (written, left_out):
        each.out_norm = nn.Identity()
    assert spread(written, x, left_out(x)) > 1e-3


@pytest.mark.parametrize("mode", ["inputs", "discretised"])
def test_the_mean_channel_is_its_definition(mode: str) -> None:
    """Means of u, delta and A, or of exp(delta A) and delta u; position by position."""
    module, u = mixer(gated=False, state=2), torch.rand(1, 3, 4, 12, dtype=torch.float64)
    small = smaller(module, mode).scan
    seen, found = small.inputs(u), small.mean_channel(small.inputs(u))
    for k in range(4):
        state = torch.zeros(2, dtype=torch.float64)
        a = -module.scan.A_logs[12 * k :][:12].exp()
        for position in range(12):
            here, delta = seen.u[position, 0, k], seen.delta[position, 0, k]
            if mode == "inputs":
                factor, added = (delta.mean() * a.mean(0)).exp(), delta.mean() * here.mean()
            else:
                factor, added = (delta[:, None] * a).exp().mean(0), (delta * here).mean()
            state = factor * state + added * seen.b[position, 0, k]
            torch.testing.assert_close(found[position, 0, k, 0], seen.c[position, 0, k] @ state)
