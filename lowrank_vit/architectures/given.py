"""What the blocks of a model are given beside the stream: rotary positions, position biases that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lowrank_vit.architectures.base import first_inputs

Given = dict[str, dict[str, Tensor]]  # by step, by argument


def given_arguments(model: nn.Module, steps: Mapping[str, nn.Module], images: Tensor) -> Given:
    """Return the tensors that each step is given beside the stream when the model sees the images.

    They are taken to be the same for all images of this size.
    """
    given: Given = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        given[name] = {key: value for key, value in options.items() if isinstance(value, Tensor)}

    hooks = [step.register_forward_pre_hook(partial(note, name), with_kwargs=True) for name, step in steps.items()]
    try:
        model(images.to(next(model.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    return given


def entered(
    model: nn.Module, steps: Mapping[str, nn.Module], batches: Iterable[Tensor]
) -> tuple[Given, Iterator[Tensor]]:
    """Return what each step is given beside the stream, and the stream before the first one, batch by batch."""
    rest = iter(batches)
    first = next(rest)
    given = given_arguments(model, steps, first[:1])
    return given, first_inputs(model, next(iter(steps.values())), chain([first], rest))
