"""Linear recurrences over positions, and the four directions in which a feature map is gone through (VMamba).

Two exact ways to compute ``h_l = a_l h_(l-1) + x_l``, ``h_0 = 0``: position by position, or in ``log2 L`` passes over all of
them. Tensors have the positions first, (L, ...), so that a step of the loop reads adjacent memory.
"""

import torch
from torch import Tensor

FEW = 64  # states of an image: with no more, calling L kernels costs more than passing over all positions log2 L times


def scan_loop(a: Tensor, x: Tensor) -> Tensor:
    """Return all h, (L, ...), position by position; a, x: (L, ...). Not differentiable: it writes to one tensor."""
    states = torch.empty_like(x)
    state = torch.zeros_like(x[0])
    for position, (factor, added) in enumerate(zip(a, x, strict=True)):
        state = torch.addcmul(added, factor, state, out=states[position])
    return states


def scan_doubling(a: Tensor, x: Tensor) -> Tensor:
    """Return all h, (L, ...); a, x: (L, ...). Differentiable, and without a loop over positions.

    After a pass with the step s, x holds the sum over the last 2 s positions, and a the product of their factors. Unlike
    cumulative sums of logarithms, it divides by nothing, so that nothing overflows.
    """
    step = 1
    while step < len(x):
        x = torch.cat([x[:step], torch.addcmul(x[step:], a[step:], x[:-step])])
        a = torch.cat([a[:step], a[step:] * a[:-step]])
        step *= 2
    return x


def recurrence(a: Tensor, x: Tensor) -> Tensor:
    """Return all h, (L, B, ...), by the faster of both ways that the situation allows; a, x: (L, B, ...)."""
    differentiable = torch.is_grad_enabled() and (a.requires_grad or x.requires_grad)
    if differentiable or torch.compiler.is_compiling() or x[0, 0].numel() <= FEW:
        return scan_doubling(a, x)
    return scan_loop(a, x)


def cross_scan(x: Tensor) -> Tensor:
    """Read a map (B, H, W, D) in four orders, (L, B, 4, D): by rows, by columns, and both backwards."""
    x = x.permute(1, 2, 0, 3)
    forwards = torch.stack([x.flatten(0, 1), x.transpose(0, 1).flatten(0, 1)], 2)
    return torch.cat([forwards, forwards.flip(0)], 2)


def by_direction(y: Tensor, height: int, width: int) -> Tensor:
    """Put what was read in four orders, (L, B, 4, D), back in its place in the map: (B, H, W, 4, D)."""
    backwards = y[:, :, 2:].flip(0)
    rows = [each[:, :, 0].unflatten(0, (height, width)) for each in (y, backwards)]
    columns = [each[:, :, 1].unflatten(0, (width, height)).transpose(0, 1) for each in (y, backwards)]
    return torch.stack([rows[0], columns[0], rows[1], columns[1]], 3).permute(2, 0, 1, 3, 4)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """Add up what was read in four orders, (L, B, 4, D), where it was in the map: (B, H, W, D)."""
    both = y[:, :, :2] + y[:, :, 2:].flip(0)
    rows = both[:, :, 0].unflatten(0, (height, width))
    columns = both[:, :, 1].unflatten(0, (width, height)).transpose(0, 1)
    return (rows + columns).permute(2, 0, 1, 3)
