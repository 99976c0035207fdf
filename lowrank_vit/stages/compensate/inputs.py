"""What the minibatch solver sees: seeded batches of images, and layers' inputs, from a pass of the dense model or memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.linears import is_linear
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world
from lowrank_vit.stages.compensate import Compensation, State, quadratic


class SeededBatches:
    """Yield this process's share of each batch of a run of ``steps``, as lists of indices.

    Every pass over the images has its own order and leaves out the incomplete last batch. Batch b depends on the seed
    only, so a resumed run and a run on several processes see the batches of a plain run.
    ``steps_done`` says which batch an iteration starts with.
    """

    def __init__(self, count: int, batch_size: int, steps: int, seed: int, steps_done: Callable[[], int]) -> None:
        self.count, self.batch_size, self.steps, self.seed = count, min(batch_size, count), steps, seed
        self.steps_done = steps_done

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        in_pass, last_pass, order = self.count // self.batch_size, -1, []
        for batch in range(self.steps_done(), self.steps):
            number, place = divmod(batch, in_pass)
            if number != last_pass:
                generator = torch.Generator().manual_seed((self.seed << 20) + number)
                last_pass, order = number, torch.randperm(self.count, generator=generator).tolist()
            yield order[place * self.batch_size : (place + 1) * self.batch_size][rank::world]


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switch autocast off, so that matrix products are as precise as their inputs."""
    active = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


class LayerInputs:
    """Compute ``A = X / (||X_i W||_F sqrt(count))`` of every layer over all tokens, stacked by groups of one shape.

    That is A, (L, tokens, n), where n > d, and ``A^T A``, (L, n, n), where n <= d: whichever makes the loss cheaper.
    Windows of an image, and rows of a feature map, are adjacent in a layer's input: an image is one block of it.
    After a successful ``remember`` the model no longer runs.
    Raises ``InputError`` where the model has no linear layer of a name, or does not use it.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]], dtype: torch.dtype) -> None:
        self.model, self.groups, self.dtype = model, groups, dtype
        self.linears = {name: _linear(model, name) for names in groups for name in names}
        self.memory: list[Tensor] | None = None  # shape of each: (L, images, tokens, n)
        self._seen: dict[str, Tensor] = {}
        self._images, self._count, self._keep = 0, 1.0, False
        self._handles: list[Any] = []

    def attach(self) -> None:
        self._handles = [linear.register_forward_hook(self._watch(name)) for name, linear in self.linears.items()]

    def detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def remember(self, images: Tensor, most_bytes: int, batch_size: int) -> bool:
        """Keep all layers' inputs for all images, (N, C, H, W), if they fit in ``most_bytes``; return whether they do."""
        self._keep = True
        first = self._run(images[:1])
        if len(images) * sum(stack.nbytes for stack in first) <= most_bytes:
            batches = [self._run(batch) for batch in images.split(batch_size)]
            self.memory = [torch.cat(stacks, 1) for stacks in zip(*batches, strict=True)]
        self._keep = False
        return self.memory is not None

    def __call__(self, batch: Tensor, count: float) -> list[Tensor]:
        """Return the inputs for images (B, C, H, W) or, once these are remembered, for their indices (B,).

        count: the number of images over which (10) is averaged.
        """
        self._count = count
        if self.memory is None:
            return self._run(batch)
        firsts = [self.linears[names[0]] for names in self.groups]
        return [self._reduced(stack[:, batch], linear) for stack, linear in zip(self.memory, firsts, strict=True)]

    @torch.no_grad()
    def _run(self, images: Tensor) -> list[Tensor]:
        parameter = next(self.model.parameters())
        self._images, self._seen = len(images), {}
        self.model(images.to(parameter.device, parameter.dtype))
        if len(self._seen) < len(self.linears):
            unused = next(name for name in self.linears if name not in self._seen)
            raise InputError(f"the model does not call its layer {unused!r}")
        return [torch.stack([self._seen.pop(name) for name in names]) for names in self.groups]

    def _watch(self, name: str) -> Callable[..., None]:
        linear, dtype = self.linears[name], self.dtype
        n, tiny = linear.in_features, torch.finfo(dtype).tiny

        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.to(dtype) if linear.bias is None else output.to(dtype) - linear.bias
            norm = torch.linalg.vector_norm(y.reshape(self._images, -1), dim=1).clamp_min_(tiny)
            a = inputs[0].to(dtype).reshape(self._images, -1, n) / norm[:, None, None]
            self._seen[name] = a if self._keep else self._reduced(a, linear)

        return see

    def _reduced(self, a: Tensor, linear: nn.Linear) -> Tensor:
        """Reshape or multiply (..., B, t, n) to (..., B t, n) or (..., n, n)."""
        a = (a / math.sqrt(self._count)).flatten(-3, -2)
        if linear.in_features > linear.out_features:
            return a
        with full_precision(a.device):
            return a.mT @ a


def batch_loss(compensation: Compensation, state: State, residual: Tensor, seen: Tensor) -> Tensor:
    """Compute (10) on a batch, (L,), differentiable. residual: (L, n, d); seen, of ``LayerInputs``: (L, tokens or n, n)."""
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
    if not is_linear(module):
        raise InputError(f"layer {name!r} is not a linear layer but {type(module).__name__}")
    return module
