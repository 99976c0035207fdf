"""The residual stream of a model, half a block by half a block: what it is given, and what every half adds to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lowrank_vit.attention import LowRankAttention
from lowrank_vit.errors import InputError
from lowrank_vit.layers import SmallMlp

HALVES, OUTPUTS = ("attn", "mlp"), {"attn": "proj", "mlp": "fc2"}


class _ReachedError(Exception):
    """The first step was reached: the rest of the forward pass is not needed."""


def steps_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that the stream goes through one after the other, by name.

    Raises ``InputError`` for a model that is not a plain ViT or Swin of timm.
    """
    steps: dict[str, nn.Module] = {}
    if isinstance(model, VisionTransformer):
        steps = {f"blocks.{name}": block for name, block in model.blocks.named_children()}
    elif isinstance(model, SwinTransformer):
        for stage, layer in model.layers.named_children():
            steps[f"layers.{stage}.downsample"] = layer.get_submodule("downsample")
            blocks = layer.get_submodule("blocks").named_children()
            steps |= {f"layers.{stage}.blocks.{name}": block for name, block in blocks}
    kinds = (Block, SwinTransformerBlock)
    if not steps or any("blocks." in name and type(step) not in kinds for name, step in steps.items()):
        raise InputError(
            f"the blocks of {type(model).__name__} are not timm's plain ViT or Swin blocks, so their outputs cannot be "
            "refitted or measured: choose recipe 'loss_aware', or in Python "
            "get_recipe('best').but(refit=False, measured=0)"
        )
    return steps


def first_inputs(model: nn.Module, step: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the model hands to its first step."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReachedError

    hook = step.register_forward_pre_hook(stop)
    try:
        for batch in batches:
            try:
                model(batch)
            except _ReachedError:
                yield seen.pop()
    finally:
        hook.remove()


def branch(block: nn.Module, half: str, x: Tensor) -> Tensor:
    """What a half of a block adds to the stream x, (B, ..., n)."""
    if isinstance(block, SwinTransformerBlock):
        return block._attn(block.norm1(x)) if half == "attn" else block.mlp(block.norm2(x))
    assert isinstance(block, Block)
    added: Tensor = block.ls1(block.attn(block.norm1(x))) if half == "attn" else block.ls2(block.mlp(block.norm2(x)))
    return added


def branch_and_inputs(block: nn.Module, half: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a half adds, and what its output layer is given for it."""
    seen: list[Tensor] = []
    hook = output_layer(block, half).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        return branch(block, half, x), seen[0]
    finally:
        hook.remove()


def output_layer(block: nn.Module, half: str) -> nn.Linear:
    """The last layer of a half."""
    module = block.get_submodule(half)
    if isinstance(module, LowRankAttention | Attention | WindowAttention):
        return module.proj
    assert isinstance(module, SmallMlp | Mlp)
    assert isinstance(module.fc2, nn.Linear)
    return module.fc2


def tokens_of(block: nn.Module, half: str, x: Tensor) -> Tensor:
    """The stream's tokens, (B, ..., n), in the order in which the half's output layer makes them, (B, T, n).

    Swin's attention sees them shifted, padded and cut into windows.
    """
    if half == "mlp" or not isinstance(block, SwinTransformerBlock):
        return x.flatten(1, -2)
    height, breadth = block.window_size
    x = torch.roll(x, [-shift for shift in block.shift_size], (1, 2))
    x = F.pad(x, (0, 0, 0, -x.shape[2] % breadth, 0, -x.shape[1] % height))
    return window_partition(x, (height, breadth)).reshape(len(x), -1, x.shape[-1])


def stream_of(block: nn.Module, half: str, tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of ``tokens_of``: the output layer's tokens, (B, T, n), as a stream of the shape (B, ..., n).

    Padding is dropped.
    """
    if half == "mlp" or not isinstance(block, SwinTransformerBlock):
        return tokens.reshape(shape)
    (_, height, breadth, n), window = shape, block.window_size
    padded = [size + -size % step for size, step in zip((height, breadth), window, strict=True)]
    x = window_reverse(tokens.reshape(-1, *window, n), window, *padded)[:, :height, :breadth]
    return torch.roll(x, list(block.shift_size), (1, 2))
