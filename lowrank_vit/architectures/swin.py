"""timm's Swin transformers: attention within shifted windows of a feature map, patches merged between stages."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, unwalked
from lowrank_vit.architectures.windows import window_attention
from lowrank_vit.records.sites import AttentionSite

Block = SwinTransformerBlock | SwinTransformerV2Block


def window_tokens(block: Block, x: Tensor) -> Tensor:
    """Shift, pad and cut a feature map (B, H, W, n) into windows, as the block's attention sees it: (B, T, n)."""
    height, width = block.window_size
    x = torch.roll(x, [-shift for shift in block.shift_size], (1, 2))
    x = F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height))
    return window_partition(x, (height, width)).reshape(len(x), -1, x.shape[-1])


def window_stream(block: Block, tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert ``window_tokens``: tokens (B, T, n) to a feature map of the shape (B, H, W, n), without padding."""
    (_, height, width, n), window = shape, block.window_size
    padded = [size + -size % step for size, step in zip((height, width), window, strict=True)]
    x = window_reverse(tokens.reshape(-1, *window, n), window, *padded)[:, :height, :width]
    return torch.roll(x, list(block.shift_size), (1, 2))


def pads(block: SwinTransformerBlock) -> bool:
    """Tell whether the block's attention may see zeros beyond the edge, where its norm gives none."""
    (height, width), (down, across) = block.input_resolution, block.window_size  # type: ignore[misc]  # timm makes pairs
    return block.dynamic_mask or height % down > 0 or width % across > 0


@FAMILIES.register("swin")
class Swin(Family):
    """Describe stages of blocks over a feature map, with patch merging as steps between them."""

    about = "timm's Swin"
    whole: ClassVar[type[nn.Module]] = SwinTransformer
    part: ClassVar[type[nn.Module]] = SwinTransformerBlock

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, self.whole)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(model, SwinTransformer | SwinTransformerV2)
        steps: dict[str, nn.Module] = {}
        for stage, layer in model.layers.named_children():
            steps[f"layers.{stage}.downsample"] = layer.get_submodule("downsample")
            for name, block in layer.get_submodule("blocks").named_children():
                if type(block) is not self.part:
                    raise unwalked(model, type(block).__name__)
                steps[f"layers.{stage}.blocks.{name}"] = block
        return steps

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if not isinstance(step, SwinTransformerBlock):
            return ()
        return (
            Branch(
                step,
                "attn",
                "proj",
                lambda x: step._attn(step.norm1(x)),
                tokens=lambda x: window_tokens(step, x),
                stream=lambda tokens, shape: window_stream(step, tokens, shape),
                norm="" if pads(step) else "norm1",
            ),
            Branch(step, "mlp", "fc2", lambda x: step.mlp(step.norm2(x)), norm="norm2"),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        return window_attention(name, module)


@FAMILIES.register("swin_v2")
class SwinV2(Swin):
    """Describe Swin with queries and keys compared by their cosine, and a norm after attention and MLP."""

    about = "timm's Swin V2"
    whole: ClassVar[type[nn.Module]] = SwinTransformerV2
    part: ClassVar[type[nn.Module]] = SwinTransformerV2Block

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if not isinstance(step, SwinTransformerV2Block):
            return ()
        return (
            Branch(
                step,
                "attn",
                "proj",
                lambda x: step.norm1(step._attn(x)),
                tokens=lambda x: window_tokens(step, x),
                stream=lambda tokens, shape: window_stream(step, tokens, shape),
                normed=True,
            ),
            Branch(step, "mlp", "fc2", lambda x: step.norm2(step.mlp(x)), normed=True),
        )
