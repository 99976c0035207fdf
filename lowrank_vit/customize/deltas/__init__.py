"""What is trained to customise a diffusion model: one file for each method.

A method is a frozen dataclass. It is attached to a U-Net whose parameters are frozen, and detached again without a trace.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry


@dataclass(frozen=True)
class Attached:
    """Hold what a method has put into a U-Net: the trained tensors by name.

    ``merge`` turns it into layers of the kinds that were there before, so that nothing more is computed; ``detach`` puts
    back what was there before, bit by bit, also after ``merge``.
    """

    tensors: dict[str, nn.Parameter]
    merge: Callable[[], None]
    detach: Callable[[], None]


class Delta(Protocol):
    """Define the interface of a method. ``trains_word``: the new word's vector is trained, too, instead of staying random."""

    trains_word: ClassVar[bool]

    @property
    def learning_rate(self) -> float:
        """Return the learning rate at the start, where none is given."""

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        """Put the method's tensors into a U-Net; ``generator``, of the CPU, draws the initial values."""


DELTAS: Registry[type[Delta]] = Registry("customisation", __name__)
ATTENTIONS = {"all": (".attn1", ".attn2"), "cross": (".attn2",)}  # of a transformer block: to itself, to the prompt


def attentions(unet: nn.Module, layers: str = "all") -> dict[str, Any]:
    """Return the attentions of a U-Net's transformer blocks by name; ``layers``: all, or those to the prompt (cross).

    Raises ``InputError`` for other ``layers``, and where there are none.
    """
    if layers not in ATTENTIONS:
        raise InputError(f"layers={layers!r}: choose from {', '.join(ATTENTIONS)}")
    found = {name: module for name, module in unet.named_modules() if name.endswith(ATTENTIONS[layers])}
    if not found:
        raise InputError("the U-Net has no attention in transformer blocks: choose a text-to-image model")
    return found


def check_rank(rank: int) -> None:
    """Raise ``InputError`` for a rank below one."""
    if rank < 1:
        raise InputError(f"rank {rank}: at least one is needed")


def drawn(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> nn.Parameter:
    """Draw initial weights (out, in) as torch does, uniform in ``+-1 / sqrt(in)``; type and device are those of ``like``."""
    bound = shape[1] ** -0.5
    values = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return nn.Parameter(values.to(like.device, like.dtype))


class Swaps:
    """Replace modules by others, and remember how to undo it."""

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, str, nn.Module]] = []

    def put(self, parent: nn.Module, name: str, module: nn.Module) -> None:
        """Put ``module`` where ``parent`` has another one under ``name``."""
        self._before.append((parent, name, getattr(parent, name)))
        setattr(parent, name, module)

    def undo(self) -> None:
        while self._before:
            setattr(*self._before.pop())
