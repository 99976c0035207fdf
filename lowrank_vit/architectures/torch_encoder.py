"""Vision transformers around torch's own attention: torchvision's, open_clip's, and those of ``nn.TransformerEncoder``."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.layers import Attention
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, unwalked
from lowrank_vit.architectures.encoder_parts import EncoderBlock
from lowrank_vit.architectures.plain import plain_attention
from lowrank_vit.architectures.step_inputs import finish
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("torch_encoder")
class TorchEncoder(Family):
    """Describe blocks that add attention and an MLP to a sequence of tokens, with a norm before each or after each sum."""

    revision: ClassVar[int] = 1

    about = "torchvision's ViT, open_clip's vision towers, `nn.TransformerEncoder`"

    def takes(self, model: nn.Module) -> bool:
        """Tell whether such a block stands in the model."""
        return any(isinstance(module, EncoderBlock) for module in model.modules())

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the blocks. Raises ``InputError`` for streams whose batch does not come first."""
        steps = {name: module for name, module in model.named_modules() if isinstance(module, EncoderBlock)}
        if not all(block.batch_first for block in steps.values()):
            raise unwalked(model, "nn.TransformerEncoderLayer(batch_first=False)")
        return dict(steps)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return the branches of attention and MLP."""
        assert isinstance(step, EncoderBlock)
        return _branches(step) if step.norm_first else _normed_branches(step)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``Attention``, which took the place of torch's."""
        return plain_attention(name, module) if type(module) is Attention else None

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        """Compute the model's outputs from the stream after the last step."""
        *_, last = self.steps(model).values()
        return finish(model, last, x)


def _branches(block: EncoderBlock) -> tuple[Branch, ...]:
    def attend(x: Tensor, **given: Any) -> Tensor:
        return block.attend(block.norm1(x), **given)

    def think(x: Tensor, **given: Any) -> Tensor:
        y: Tensor = block.mlp(block.norm2(x))
        return y

    return Branch(block, "attn", "proj", attend, norm="norm1"), Branch(block, "mlp", "fc2", think, norm="norm2")


def _normed_branches(block: EncoderBlock) -> tuple[Branch, ...]:
    """Return branches whose norm sees the stream, too: what they add is the difference of the streams."""

    def attend(x: Tensor, **given: Any) -> Tensor:
        y: Tensor = block.norm1(x + block.attend(x, **given)) - x
        return y

    def think(x: Tensor, **given: Any) -> Tensor:
        y: Tensor = block.norm2(x + block.mlp(x)) - x
        return y

    return Branch(block, "attn", "proj", attend, normed=True), Branch(block, "mlp", "fc2", think, normed=True)
