"""What the minibatch solver sees of a batch: the inputs of the layers, from one pass of the frozen dense model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.compensate import Compensation, State, quadratic
from lowrank_vit.errors import InputError


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products as precise as their inputs, even where the frozen model runs under autocast."""
    active = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


class LayerInputs:
    """Called with images (B, C, H, W), it gives ``A = X / (||X_i W||_F sqrt(count))`` of every layer, all tokens in one.

    That is A, (tokens, n), where n > d, and ``A^T A``, (n, n), where n <= d: whichever makes the loss cheaper.
    Windows of an image, and rows of a feature map, are neighbours in a layer's input: an image is one block of it.
    Raises ``InputError`` where the model has no linear layer of a name, or does not use it.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.linears = {name: _linear(model, name) for name in names}
        self._seen: dict[str, Tensor] = {}
        self._images, self._root = 0, 1.0
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Listen to the layers."""
        self._handles = [linear.register_forward_hook(self._watch(name)) for name, linear in self.linears.items()]

    def detach(self) -> None:
        """Leave the model as it was found: without hooks."""
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def __call__(self, images: Tensor, count: float) -> dict[str, Tensor]:
        """One forward pass. count: the images over which (10) is to be averaged."""
        self._images, self._root, self._seen = len(images), math.sqrt(count), {}
        self.model(images.to(next(self.model.parameters()).dtype))
        if len(self._seen) < len(self.linears):
            unused = next(name for name in self.linears if name not in self._seen)
            raise InputError(f"the model does not call its layer {unused!r}")
        return self._seen

    def _watch(self, name: str) -> Callable[..., None]:
        linear, dtype = self.linears[name], self.dtype
        n, wide, tiny = linear.in_features, linear.in_features <= linear.out_features, torch.finfo(dtype).tiny

        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.to(dtype) if linear.bias is None else output.to(dtype) - linear.bias
            norm = torch.linalg.vector_norm(y.reshape(self._images, -1), dim=1).mul_(self._root).clamp_min_(tiny)
            a = (inputs[0].to(dtype).reshape(self._images, -1, n) / norm[:, None, None]).view(-1, n)
            with full_precision(a.device):
                self._seen[name] = a.T @ a if wide else a

        return see


def batch_loss(compensation: Compensation, state: State, residual: Tensor, seen: Tensor) -> Tensor:
    """Equation (10) on a batch, (L,), differentiable. residual: (L, n, d); seen: (L, tokens or n, n), see above."""
    n, d = state.shape
    target = seen @ residual
    if n > d:
        return (compensation.product(state, seen) - target).square().sum((1, 2))
    return quadratic(compensation, state, seen, target) + (residual * target).sum((1, 2))


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the model has no layer {name!r}") from None
    if not isinstance(module, nn.Linear):
        raise InputError(f"layer {name!r} is no linear layer but {type(module).__name__}")
    return module
