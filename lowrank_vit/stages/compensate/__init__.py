"""Compensation: a small Z on top of the frozen ``U V^T`` of a layer, one kind of Z for each file in ``kinds``.

With the residual ``R = W - U V^T`` and ``M = (1/N) sum_i X_i^T X_i / ||X_i W||_F^2``, equation (10) of the paper is
``tr((Z - R)^T M (Z - R))``. A kind of Z is a frozen dataclass; the solvers (``solve.py``, and ``minibatch.py``, the only
one that needs Lightning) use it only through the methods of ``Compensation``. Everything is batched over L layers of one
shape. The kinds have a folder of their own: the registry imports the whole folder, and importing Lightning takes seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.runtime.tensors import storable


@storable
@dataclass(frozen=True)
class State:
    """Hold Z of L layers of one shape (n, d): trainable and fixed tensors, each stacked along its first dimension."""

    shape: tuple[int, int]
    trainable: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]  # the support of a sparse Z

    def layer(self, index: int) -> "State":
        """Return the state of one layer, still stacked (L is 1) and detached from the graph."""
        trainable = {name: tensor.detach()[index : index + 1] for name, tensor in self.trainable.items()}
        return State(self.shape, trainable, {name: tensor[index : index + 1] for name, tensor in self.fixed.items()})

    def to(self, device: torch.device, dtype: torch.dtype) -> "State":
        """Move the state to a device; ``dtype`` is that of the trainable tensors."""
        trainable = {name: tensor.to(device, dtype) for name, tensor in self.trainable.items()}
        return State(self.shape, trainable, {name: tensor.to(device) for name, tensor in self.fixed.items()})


class Compensation(Protocol):
    """Define the interface of a kind of Z. All kinds share only the argument ``budget``, see ``parameter_count``."""

    kind: ClassVar[str]  # the name under which it is registered
    module_type: ClassVar[type[nn.Module]]  # of ``module``; its ``config`` has the kind and the constructor's arguments

    def parameter_count(self, n: int, d: int) -> int:
        """Count the values of Z for a layer (n, d). Positions of a sparse Z are not parameters, so they do not count."""

    def start(self, residual: Tensor, moment: Tensor, seeds: Sequence[int]) -> State:
        """Return where gradient solvers start: Z = 0, not stationary. (L, n, d), (L, n, n), one seed for each layer."""

    def dense(self, state: State) -> Tensor:
        """Return Z, (L, n, d), differentiable in the trainable tensors."""

    def product(self, state: State, x: Tensor) -> Tensor:
        """Compute ``x Z``, (L, t, n) to (L, t, d), differentiable, as cheaply as the kind allows."""

    def closed_form(self, residual: Tensor, moment: Tensor) -> State:
        """Return the minimiser of (10); sparse kinds keep the support that ``start`` chooses. (L, n, d), (L, n, n)."""

    def factors(self, state: State, index: int) -> tuple[Tensor, Tensor] | None:
        """Return ``G, Y`` with ``Z = G Y^T`` of one layer, to fold into ``[U G] [V Y]^T``; ``None`` where Z does not fold."""

    def module(self, state: State, index: int) -> nn.Module:
        """Make the deployable module of one layer: x (..., n) to x Z (..., d), with ``parameter_count`` parameters."""


COMPENSATIONS: Registry[type[Compensation]] = Registry("compensation", "lowrank_vit.stages.compensate.kinds")


def empty_module(kind: str, **options: Any) -> nn.Module:
    """Make a module of zeros from its ``config`` (``empty_module(**module.config)``), ready for a strict state dict.

    Raises ``InputError`` where ``kind`` is not a registered compensation.
    """
    return COMPENSATIONS.get(kind).module_type(**options)


def check_budget(budget: float) -> None:
    """Raise ``InputError`` unless the budget is a share of the layer's weight parameters, in (0, 1]."""
    if not 0 < budget <= 1:
        raise InputError(f"the budget of a compensation is a share of the layer's parameters in (0, 1], not {budget}")


def share(budget: float, total: float) -> int:
    """Compute ``floor(budget * total)``, safe from rounding errors: 0.29 of 100 is 29."""
    return math.floor(budget * total * (1 + 1e-12))


def squared_error(z: Tensor, residual: Tensor, moment: Tensor) -> Tensor:
    """Compute equation (10), ``tr((Z - R)^T M (Z - R))``, (L,). z, residual: (L, n, d); moment: (L, n, n)."""
    difference = z - residual
    return (difference * (moment @ difference)).sum((1, 2))


def quadratic(compensation: Compensation, state: State, moment: Tensor, target: Tensor) -> Tensor:
    """Compute ``tr(Z^T M Z) - 2 tr(Z^T T)``, (L,): equation (10) less its constant ``tr(R^T M R)``, where ``T = M R``.

    Differentiable; for a low-rank Z it costs ``n q (n + d)``, not ``n^2 d``. moment: (L, n, n); target: (L, n, d).
    """
    return (compensation.dense(state) * (compensation.product(state, moment) - 2 * target)).sum((1, 2))
