"""The optimisers of Z's gradient solvers: plain gradient descent, as the paper's words have it, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lowrank_vit.runtime.registry import unknown

ADAM, SGD = "adam", "sgd"


def _adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def _sgd(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)  # the paper names no momentum, and no decay


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], torch.optim.Optimizer]] = {ADAM: _adam, SGD: _sgd}


def check_optimizer(name: str) -> None:
    """Raise ``InputError`` unless the optimiser is known."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)


def make_optimizer(name: str, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Make the optimiser for the parameters of all layers, at a constant learning rate as in the paper.

    One for all layers is one for each: it works element by element, and the layers' losses are summed.
    Raises ``InputError`` for an unknown one.
    """
    check_optimizer(name)
    return OPTIMIZERS[name](parameters, lr)
