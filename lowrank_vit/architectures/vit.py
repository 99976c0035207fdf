"""timm's plain vision transformers: ViT, DeiT, and all that are built of the same blocks."""

from __future__ import annotations

from timm.layers import Attention, LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lowrank_vit.architectures.base import (
    FAMILIES,
    Branch,
    Family,
    unwalked,
)
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.architectures.plain import plain_attention
from lowrank_vit.modules.fold import AttentionWeights
from lowrank_vit.records.layers import AttentionSite


def layer_scale(module: nn.Module) -> Tensor | None:
    """Return LayerScale's factors; None if there are none."""
    return module.gamma if isinstance(module, LayerScale) else None


@FAMILIES.register("vit")
class ViT(Family):
    """Attention and MLP behind a norm each, both added to a sequence of tokens."""

    about = "timm's ViT, DeiT, DeiT III"

    def takes(self, model: nn.Module) -> bool:
        """Say whether the model is a ``VisionTransformer``."""
        return isinstance(model, VisionTransformer)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the blocks."""
        assert isinstance(model, VisionTransformer)
        blocks = {f"blocks.{name}": block for name, block in model.blocks.named_children()}
        other = next((type(block).__name__ for block in blocks.values() if type(block) is not Block), None)
        if other is not None or not blocks:
            raise unwalked(model, str(other))
        return blocks

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return the branches of attention and MLP."""
        assert isinstance(step, Block)
        return (
            Branch(step, "attn", "proj", lambda x: step.ls1(step.attn(step.norm1(x))), layer_scale(step.ls1)),
            Branch(step, "mlp", "fc2", lambda x: step.ls2(step.mlp(step.norm2(x))), layer_scale(step.ls2)),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``Attention``."""
        if type(module) is not Attention:  # a subclass may compute something else
            return None
        return plain_attention(name, module)

    def attention_weights(self, model: nn.Module, site: AttentionSite) -> AttentionWeights:
        """Return the weights of timm's ``Attention``."""
        module = model.get_submodule(site.name)
        assert isinstance(module, Attention)
        return AttentionWeights(*dense_linear(model, site.qkv), float(module.scale), module.qkv.weight.dtype)
