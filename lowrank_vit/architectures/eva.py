"""timm's plain EVA: a ViT whose biases of queries and values are separate from the layer that makes them."""

from __future__ import annotations

from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from lowrank_vit.architectures.base import (
    FAMILIES,
    Branch,
    Family,
    Refusals,
    Sites,
    UnknownWholeError,
    unwalked,
)
from lowrank_vit.architectures.linears import dense_linear
from lowrank_vit.architectures.plain import plain_attention
from lowrank_vit.modules.fold import AttentionWeights
from lowrank_vit.records.layers import AttentionSite


def scaled(scale: Tensor | None, x: Tensor) -> Tensor:
    """Multiply by LayerScale's factors, where there are any."""
    return x if scale is None else scale * x


def rotary(model: nn.Module) -> UnknownWholeError:
    """Return the error for rotary positions, which neither a smaller attention nor a block by itself would know."""
    return UnknownWholeError(f"{type(model).__name__} rotates its queries and keys by their positions")


@FAMILIES.register("eva")
class PlainEva(Family):
    """Attention without rotation and an MLP without gates, both behind a norm and added to a sequence of tokens."""

    about = "timm's EVA with absolute positions"

    def takes(self, model: nn.Module) -> bool:
        """Say whether the model is an ``Eva``."""
        return isinstance(model, Eva)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the blocks."""
        assert isinstance(model, Eva)
        blocks = {f"blocks.{name}": block for name, block in model.blocks.named_children()}
        other = next((type(block).__name__ for block in blocks.values() if type(block) is not EvaBlock), None)
        if other is not None:
            raise unwalked(model, other)
        if model.rope is not None:
            raise rotary(model)
        return blocks

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        """Find every attention module and MLP; attention with rotary positions is refused, too."""
        assert isinstance(model, Eva)
        sites, refusals = super().survey(model)
        if model.rope is None:
            return sites, refusals
        modules = model.named_modules()
        rotated = {name: rotary(model) for name, module in modules if isinstance(module, EvaAttention)}
        return [site for site in sites if site.name not in rotated], refusals | rotated

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return the branches of attention and MLP."""
        assert isinstance(step, EvaBlock)
        return (
            Branch(step, "attn", "proj", lambda x: scaled(step.gamma_1, step.attn(step.norm1(x))), step.gamma_1),
            Branch(step, "mlp", "fc2", lambda x: scaled(step.gamma_2, step.mlp(step.norm2(x))), step.gamma_2),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``EvaAttention``; its keys have no bias."""
        if type(module) is not EvaAttention:
            return None
        biased = module.q_bias is not None
        return plain_attention(name, module, query_bias=biased, value_bias=biased)

    def attention_weights(self, model: nn.Module, site: AttentionSite) -> AttentionWeights:
        """Return the weights of timm's ``EvaAttention``, the separate biases joined."""
        module = model.get_submodule(site.name)
        assert isinstance(module, EvaAttention)
        return AttentionWeights(*dense_linear(model, site.qkv), float(module.scale), module.qkv.weight.dtype)
