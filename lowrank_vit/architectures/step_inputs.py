"""What the blocks of a model are given beside the stream: rotary positions, position biases that they share, masks."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from lowrank_vit.architectures.base import Family, first_inputs
from lowrank_vit.architectures.parts import UnknownWholeError
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.predicting import logits_of, predict
from lowrank_vit.modules.surgery import hooked
from lowrank_vit.runtime.errors import InputError

SEEN = "seen_image_size"  # attribute of a model: (C, H, W) of the images that it was walked through with
Given = dict[str, dict[str, Any]]  # by step, by argument


def step_inputs(model: nn.Module, steps: Mapping[str, nn.Module], images: Tensor) -> Given:
    """Return the arguments that each step is given besides the stream when the model sees the images.

    They are taken to be the same for all images of this size.
    """
    given: Given = {}

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        given[name] = _beside(module, inputs, options)

    setattr(model, SEEN, tuple(images.shape[1:]))
    hooks = (step.register_forward_pre_hook(partial(note, name), with_kwargs=True) for name, step in steps.items())
    with hooked(hooks):
        predict(model, images)
    return given


def _beside(module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call except the first one, by name."""
    if len(inputs) == 1:
        return dict(options)
    signature = inspect.signature(module.forward)
    _, *named = signature.bind(*inputs).arguments.items()
    return {**dict(named), **options}


def run_step(step: nn.Module, x: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the stream after a step; some steps return it first in a tuple, some what is added to it."""
    outputs = step(x, **given)
    after: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return x + after if getattr(step, "adds", False) else after


def enter(
    model: nn.Module, steps: Mapping[str, nn.Module], batches: Iterable[Tensor]
) -> tuple[Given, Iterator[Tensor]]:
    """Return what each step is given besides the stream, and the stream before the first step, batch by batch."""
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise InputError("the calibration images can be gone through only once: pass a list or a data loader")
    given = step_inputs(model, steps, first[:1])
    return given, first_inputs(model, next(iter(steps.values())), chain([first], rest))


def finish(model: nn.Module, last: nn.Module, x: Tensor) -> Tensor:
    """Compute a model's outputs from the stream after its ``last`` step, where nothing else does.

    The model sees a blank image, and what its last step hands on is exchanged for x: whatever follows is its own.
    """

    def hand_on(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if getattr(module, "adds", False):
            return x - inputs[0]
        return (x, *outputs[1:]) if isinstance(outputs, tuple) else x

    size = input_size(model) or getattr(model, SEEN, None)
    if size is None:
        raise UnknownWholeError(f"{type(model).__name__} does not say the size of its images")
    with last.register_forward_hook(hand_on):
        return logits_of(model(x.new_zeros(1, *size)))


class Foreign(Family):
    """Describe models of other libraries than timm, whose outputs are found by running what follows the last step."""

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        *_, last = self.steps(model).values()
        return finish(model, last, x)
