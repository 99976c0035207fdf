"""timm's Swin transformers: attention within shifted windows of a feature map, patches merged between stages."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, unwalked
from lowrank_vit.architectures.plain import two_branches
from lowrank_vit.architectures.windows import cut_windows, join_windows, window_attention
from lowrank_vit.records.sites import AttentionSite


def window_tokens(block: Any, x: Tensor) -> Tensor:
    """Shift, pad and cut a feature map (B, H, W, n) into windows, as the block's attention sees it: (B, T, n)."""
    return cut_windows(torch.roll(x, [-shift for shift in block.shift_size], (1, 2)), block.window_size, (0, 0))


def window_stream(block: Any, tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert ``window_tokens``: tokens (B, T, n) to a feature map of the shape (B, H, W, n), without padding."""
    return torch.roll(join_windows(tokens, block.window_size, (0, 0), shape[1:3]), block.shift_size, (1, 2))


def pads(block: SwinTransformerBlock | SwinTransformerV2Block) -> bool:
    """Tell whether the block's attention may see zeros beyond the edge, where its norm gives none."""
    (height, width), (down, across) = block.input_resolution, block.window_size  # type: ignore[misc]  # timm makes pairs
    return block.dynamic_mask or height % down > 0 or width % across > 0


@FAMILIES.register("swin")
class Swin(Family):
    """Describe stages of blocks over a feature map, with patch merging as steps between them."""

    about = "timm's Swin"
    whole: ClassVar[type[nn.Module]] = SwinTransformer
    part: ClassVar[type[nn.Module]] = SwinTransformerBlock
    normed: ClassVar[bool] = False  # whether norms follow attention and MLP

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
        if not isinstance(step, self.part):
            return ()
        block: Any = step
        return two_branches(
            block,
            block._attn,
            normed=self.normed,
            foldable=(not pads(block), True),
            tokens=lambda x: window_tokens(block, x),
            stream=lambda tokens, shape: window_stream(block, tokens, shape),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        return window_attention(name, module)


@FAMILIES.register("swin_v2")
class SwinV2(Swin):
    """Describe Swin with queries and keys compared by their cosine, and a norm after attention and MLP."""

    about = "timm's Swin V2"
    whole: ClassVar[type[nn.Module]] = SwinTransformerV2
    part: ClassVar[type[nn.Module]] = SwinTransformerV2Block
    normed: ClassVar[bool] = True
