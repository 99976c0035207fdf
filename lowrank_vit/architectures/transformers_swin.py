"""Hugging Face's Swin transformers: attention within shifted windows of a feature map, whose pixels come as tokens."""

from collections.abc import Sequence
from math import isqrt
from typing import Any, ClassVar

from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch
from lowrank_vit.architectures.origin import kind_of
from lowrank_vit.architectures.plain import two_branches
from lowrank_vit.architectures.transformers_parts import CORE
from lowrank_vit.architectures.transformers_vit import TransformersViT
from lowrank_vit.architectures.windows import cut_windows, join_windows, padded, window_attention
from lowrank_vit.records.sites import AttentionSite


def _sides(block: Any, tokens: int) -> tuple[int, int]:
    """Return height and width of the feature map: the block's own, or those of a square for another number of tokens."""
    height, width = block.input_resolution
    return (height, width) if height * width == tokens else (isqrt(tokens), isqrt(tokens))


def _window(block: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sides of the block's windows, and by how much they are shifted."""
    return (block.window_size, block.window_size), (block.shift_size, block.shift_size)


def window_tokens(block: Any, x: Tensor) -> Tensor:
    """Cut a feature map's pixels (B, H W, n) into windows, as the block's attention sees them: (B, T, n)."""
    return cut_windows(x.unflatten(1, _sides(block, x.shape[1])), *_window(block))


def window_stream(block: Any, tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert ``window_tokens``: tokens (B, T, n) to the pixels of a feature map, of the ``shape`` (B, H W, n)."""
    return join_windows(tokens, *_window(block), _sides(block, shape[1])).reshape(shape)


@FAMILIES.register("transformers_swin")
class TransformersSwin(TransformersViT):
    """Describe stages of blocks over a feature map, with patch merging as steps between them."""

    about = "Hugging Face's Swin"
    blocks: ClassVar[frozenset[str]] = frozenset({"SwinLayer"})
    merging: ClassVar[str] = "SwinPatchMerging"

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        blocks = super().steps(model)
        return {
            name: module for name, module in model.named_modules() if name in blocks or kind_of(module) == self.merging
        }

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if kind_of(step) == self.merging:
            return ()
        block: Any = step

        def attend(x: Tensor, **given: Any) -> Tensor:
            tokens = window_tokens(block, x)
            sides = padded(_sides(block, x.shape[1]), _window(block)[0])
            mask = block.get_attn_mask(*sides, dtype=x.dtype, device=x.device)
            added = block.attention(tokens.reshape(-1, block.window_size**2, x.shape[-1]), mask)[0]
            return window_stream(block, added, x.shape)

        return two_branches(
            block,
            attend,
            attention=f"attention.{CORE}",
            norms=("layernorm_before", "layernorm_after"),
            foldable=(False, False),
            tokens=lambda x: window_tokens(block, x),
            stream=lambda tokens, shape: window_stream(block, tokens, shape),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        return window_attention(name, module)
