"""Hugging Face's ViT, DeiT, DINOv2, SigLIP and CLIP vision models: a norm, attention, a norm and an MLP in each block."""

from dataclasses import dataclass
from typing import Any, ClassVar

from timm.layers import Attention
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Refusals, Sites
from lowrank_vit.architectures.origin import kind_of
from lowrank_vit.architectures.parts import UnknownWholeError
from lowrank_vit.architectures.plain import plain_attention, two_branches
from lowrank_vit.architectures.step_inputs import Foreign
from lowrank_vit.architectures.transformers_parts import CORE, Answering
from lowrank_vit.records.sites import AttentionSite


@dataclass(frozen=True)
class Layout:
    """Name the parts of a block."""

    norms: tuple[str, str]
    attention: str = "attention"
    scales: tuple[str, ...] = ()  # of LayerScale


VIT = Layout(("layernorm_before", "layernorm_after"))
DINO = Layout(("norm1", "norm2"), scales=("layer_scale1.lambda1", "layer_scale2.lambda1"))
CLIP = Layout(("layer_norm1", "layer_norm2"), "self_attn")
LAYOUTS = {
    "ViTLayer": VIT,
    "DeiTLayer": VIT,
    "Dinov2Layer": DINO,
    "Dinov2WithRegistersLayer": DINO,
    "SiglipEncoderLayer": CLIP,
    "CLIPEncoderLayer": CLIP,
}


@FAMILIES.register("transformers_vit")
class TransformersViT(Foreign):
    """Describe blocks of transformers that add attention and an MLP, with a norm each, to a sequence of tokens."""

    about = "Hugging Face's ViT, DeiT, DINOv2, SigLIP and CLIP vision"
    blocks: ClassVar[frozenset[str]] = frozenset(LAYOUTS)

    def takes(self, model: nn.Module) -> bool:
        return any(kind_of(module) in self.blocks for module in model.modules())

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the blocks. Raises ``InputError`` for a block with attention of another kind."""
        steps = {name: module for name, module in model.named_modules() if kind_of(module) in self.blocks}
        for name, block in steps.items():
            if not any(isinstance(part, Answering) for part in block.children()):
                raise UnknownWholeError(f"{name!r} has attention of another kind than {type(block).__name__} had")
        return steps

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        layout = LAYOUTS[kind_of(step)]

        def attend(x: Tensor, attention_mask: Tensor | None = None, **given: Any) -> Tensor:
            return getattr(step, layout.attention)(x, attention_mask)[0]

        return two_branches(
            step,
            attend,
            attention=f"{layout.attention}.{CORE}",
            norms=layout.norms,
            scales=layout.scales,
            foldable=(False, False),
        )

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        """Find every attention module and MLP. Raises ``InputError`` for a model of texts beside images."""
        if any(name.endswith("text_model") for name, _ in model.named_modules()):
            raise UnknownWholeError(f"{type(model).__name__} reads texts, too", "pass its vision_model alone")
        return super().survey(model)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``Attention``, which took the place of the block's own."""
        return plain_attention(name, module) if type(module) is Attention else None
