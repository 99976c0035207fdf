"""timm's plain vision transformers: ViT, DeiT, and all that are built of the same blocks."""

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch
from lowrank_vit.architectures.parts import UnknownWholeError
from lowrank_vit.architectures.plain import (
    LAYERS,
    PlainFamily,
    is_plain,
    layer_scale,
    listed_blocks,
    plain_attention,
    two_branches,
)
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.records.sites import AttentionSite

HALVES = {"attns": ("attn", "proj"), "ffns": ("mlp", "fc2")}  # of a block with several of each, beside each other


@FAMILIES.register("vit")
class ViT(PlainFamily):
    """Describe blocks that add attention and an MLP, with a norm each, to a sequence of tokens."""

    about = "timm's ViT, DeiT, DeiT III"
    whole = VisionTransformer
    blocks = (Block, ResPostBlock, ParallelThingsBlock)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if isinstance(step, ParallelThingsBlock):
            return tuple(
                Branch(
                    step,
                    f"{half}.{place}.{name}",
                    output,
                    part,
                    layer_scale(part.ls),
                    beside=place > 0,
                    norm=f"{half}.{place}.norm",
                    layer_scale=f"{half}.{place}.ls",
                )
                for half, (name, output) in HALVES.items()
                for place, part in enumerate(getattr(step, half))
            )
        return two_branches(step, normed=True) if isinstance(step, ResPostBlock) else two_branches(step, scales=LAYERS)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if type(module) is not Attention:  # a subclass may compute something else
            return None
        return plain_attention(name, module)

    def read_tokens(self, model: nn.Module) -> int | None:
        """Return 1 for the class token alone, 2 with a distillation token; None where tokens are pooled."""
        pooled = getattr(model, "global_pool", "") != "token" or getattr(model, "attn_pool", None) is not None
        return None if pooled else 2 if isinstance(model, VisionTransformerDistilled) else 1

    def token_blocks(self, model: nn.Module) -> list[str]:
        """Name the blocks: all of the plain kind, whose attention is plain or a smaller one, pooled by the class token."""
        blocks = listed_blocks(model, Block)
        for name, block in blocks.items():
            attention = block.get_submodule("attn")
            plain = type(attention) is Attention and is_plain(f"{name}.attn", attention)
            if not plain and not isinstance(attention, LowRankAttention):
                raise UnknownWholeError(
                    f"{name}.attn is a {type(attention).__name__} of another kind", "choose a plain ViT"
                )
        return list(blocks)
