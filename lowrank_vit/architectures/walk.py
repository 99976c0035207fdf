"""Whether the stream of a model goes from each block to the next: seen by running it, since anything may stand between."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from os.path import commonpath
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.encoder_parts import EncoderBlock
from lowrank_vit.architectures.imitated import BranchStep
from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.surgery import evaluating, hooked

TOKENS = 5
SIDES = (32, 64, 224, 28, 96, 128, 256, 384, 16, 8, 48, 112, 160, 192, 336, 448, 512)  # of images, where none is known


def check_walk(model: nn.Module) -> nn.Module:
    """Say of every block, or branch, that was exchanged whether the stream goes from one to the next; return the model."""
    steps = {name: module for name, module in model.named_modules() if isinstance(module, EncoderBlock | BranchStep)}
    if steps:
        walks = _walks(model, steps)
        for step in steps.values():
            step.walks = walks
    return model


@torch.no_grad()
def _walks(model: nn.Module, steps: dict[str, EncoderBlock | BranchStep]) -> bool:
    """Run what is around all steps, or else the model, and compare what each step is given with what the last one left."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        x, y = inputs[0], output[0] if isinstance(output, tuple) else output
        seen.append((name, x, x + y if getattr(module, "adds", False) else y))

    with hooked(step.register_forward_hook(partial(note, name)) for name, step in steps.items()), evaluating(model):
        for around, x in _trials(model, steps):
            seen.clear()
            try:
                around(x)
            except Exception:  # it takes something else
                continue
            return [name for name, *_ in seen] == list(steps) and all(
                before.shape == after.shape and torch.allclose(before, after, rtol=1e-3, atol=1e-5)
                for (_, _, before), (_, after, _) in pairwise(seen)
            )
        return False


def _trials(model: nn.Module, steps: dict[str, EncoderBlock | BranchStep]) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield what may be run, with what: the module around all steps with random tokens, the model with random images."""
    generator, like = torch.Generator().manual_seed(0), next(model.parameters())
    first = next(layer for layer in next(iter(steps.values())).modules() if isinstance(layer, nn.Linear))
    name = commonpath([step.replace(".", "/") for step in steps]).replace("/", ".") if len(steps) > 1 else ""
    if name:
        yield model.get_submodule(name), torch.randn(2, TOKENS, first.in_features, generator=generator).to(like)
    known = input_size(model)
    channels = next((each.in_channels for each in model.modules() if isinstance(each, nn.Conv2d)), 3)
    for size in [known] if known else [(channels, side, side) for side in SIDES]:
        yield model, torch.randn(2, *size, generator=generator).to(like)
