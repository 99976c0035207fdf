"""Vision transformers around torch's own attention, and those whose blocks or branches compute what timm's do.

Such are torchvision's, open_clip's, those of ``nn.TransformerEncoder``, and most of those that people wrote themselves.
"""

from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, unwalked
from lowrank_vit.architectures.encoder_parts import EncoderBlock
from lowrank_vit.architectures.imitated import CORE, BranchStep
from lowrank_vit.architectures.parts import ADVICE, UnknownWholeError
from lowrank_vit.architectures.plain import LAYERS, plain_attention, two_branches
from lowrank_vit.architectures.step_inputs import Foreign
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("torch_encoder")
class TorchEncoder(Foreign):
    """Describe blocks that add attention and an MLP to a sequence of tokens, with a norm before each or after each sum."""

    about = "torchvision's ViT, open_clip's vision towers, `nn.TransformerEncoder`, blocks found to compute the same"

    def takes(self, model: nn.Module) -> bool:
        return any(isinstance(module, EncoderBlock | BranchStep) for module in model.modules())

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the blocks. Raises ``InputError`` for streams whose batch does not come first."""
        steps = {
            name: module for name, module in model.named_modules() if isinstance(module, EncoderBlock | BranchStep)
        }
        if not all(getattr(block, "batch_first", True) for block in steps.values()):
            raise unwalked(model, "nn.TransformerEncoderLayer(batch_first=False)")
        if not all(step.walks for step in steps.values()):
            raise UnknownWholeError(
                f"the stream of {type(model).__name__} does not go from block to block as far as can be seen, so outputs "
                "cannot be refitted or measured",
                f"{ADVICE}, or one without refit and measured losses",
            )
        return dict(steps)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if isinstance(step, BranchStep):
            output = "fc2" if isinstance(getattr(step.core, "fc2", None), nn.Module) else "proj"
            return (Branch(step, CORE, output, step.added, norm="norm"),)
        assert isinstance(step, EncoderBlock)
        return two_branches(step, step.attend, scales=LAYERS) if step.norm_first else _normed_branches(step)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        return plain_attention(name, module) if type(module) is Attention else None


def _normed_branches(block: EncoderBlock) -> tuple[Branch, ...]:
    """Return branches whose norm sees the stream, too: what they add is the difference of the streams."""

    def attend(x: Tensor, **given: Any) -> Tensor:
        return block.norm1(x + block.ls1(block.attend(x, **given))) - x

    def think(x: Tensor, **given: Any) -> Tensor:
        return block.norm2(x + block.ls2(block.mlp(x))) - x

    return Branch(block, "attn", "proj", attend, normed=True), Branch(block, "mlp", "fc2", think, normed=True)
