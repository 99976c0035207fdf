"""The two exact scans against a plain float64 recurrence, and the four orders by hand."""

import pytest
import torch
from torch import Tensor

from lowrank_vit.linalg.scans import by_direction, cross_merge, cross_scan, recurrence, scan_doubling, scan_loop
from tests.support.cases import in_turn

WAYS = [scan_loop, scan_doubling, recurrence]


def truth(a: Tensor, x: Tensor) -> Tensor:
    """h_l = a_l h_(l-1) + x_l, number by number in float64."""
    a, x = a.double(), x.double()
    states = [x[0]]
    for position in range(1, len(x)):
        states.append(a[position] * states[-1] + x[position])
    return torch.stack(states)


def problem(positions: int, states: int, delta: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Factors exp(-n delta) of positions, images, directions, channels and states, and what is added."""
    generator = torch.Generator().manual_seed(seed)
    shape = (positions, 2, 4, 5, states)
    steps = delta * torch.rand(shape, generator=generator, dtype=torch.float64)
    return (-steps * torch.arange(1, states + 1)).exp(), torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("way", "positions", "states", "delta"), in_turn(WAYS, [1, 3, 50], [1, 16], [1e-4, 30.0]))
def test_a_scan_is_the_recurrence(way, positions: int, states: int, delta: float) -> None:
    a, x = problem(positions, states, delta)
    expected = truth(a, x)
    torch.testing.assert_close(way(a, x), expected, rtol=1e-10, atol=1e-10)
    found = way(a.float(), x.float()).double()
    assert (found - truth(a.float(), x.float())).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("seed", range(2))
def test_random_shapes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positions, states = (int(torch.randint(1, high, (), generator=generator)) for high in (130, 20))
    a, x = problem(positions, states, float(10 * torch.rand((), generator=generator)), seed)
    for way in WAYS:
        torch.testing.assert_close(way(a, x), truth(a, x), rtol=1e-10, atol=1e-10)


def test_doubling_is_differentiable() -> None:
    a, x = (tensor[:7, :1, :2, :2].clone().requires_grad_() for tensor in problem(7, 2, 1.0))
    assert torch.autograd.gradcheck(scan_doubling, (a, x))
    assert recurrence(a, x).requires_grad


def test_four_orders_by_hand() -> None:
    """A map of two rows and three columns: a b c / d e f."""
    seen = cross_scan(torch.arange(6.0).view(1, 2, 3, 1)).squeeze().T
    rows, columns = [0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]
    assert seen.tolist() == [rows, columns, rows[::-1], columns[::-1]]


@pytest.mark.parametrize("size", [(5, 4), (1, 6)])
def test_what_is_read_is_put_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    torch.testing.assert_close(cross_merge(cross_scan(x), *size), 4 * x)
    apart = by_direction(cross_scan(x), *size)
    torch.testing.assert_close(apart, x[:, :, :, None].expand_as(apart))
    y = torch.randn(size[0] * size[1], 2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(by_direction(y, *size).sum(3), cross_merge(y, *size))
