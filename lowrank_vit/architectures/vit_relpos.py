"""timm's ViT with relative positions, of each block or shared by all."""

from timm.models.vision_transformer_relpos import (
    RelPosAttention,
    RelPosBlock,
    ResPostRelPosBlock,
    VisionTransformerRelPos,
)
from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch
from lowrank_vit.architectures.plain import BIASED, LAYERS, PlainFamily, plain_attention, two_branches
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("vit_relpos")
class RelPosViT(PlainFamily):
    """Describe blocks that add attention with position biases, and an MLP, with a norm each, to a sequence of tokens."""

    about = "timm's ViT with relative positions"
    whole = VisionTransformerRelPos
    blocks = (RelPosBlock, ResPostRelPosBlock)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if isinstance(step, ResPostRelPosBlock):
            return two_branches(step, normed=True)
        return two_branches(step, scales=LAYERS)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``RelPosAttention``, whose biases a module of their own makes."""
        return plain_attention(name, module, dense_logits=BIASED) if type(module) is RelPosAttention else None
