"""timm's CaiT: heads that talk to each other, and a class token that comes after the blocks."""

from typing import ClassVar

from timm.models.cait import Cait, LayerScaleBlock, TalkingHeadAttn
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family
from lowrank_vit.architectures.plain import MIXED, added_positions, listed_blocks, plain_attention, scaled_branches
from lowrank_vit.records.sites import AttentionSite, TableSite


@FAMILIES.register("cait")
class CaitFamily(Family):
    """Describe blocks that add attention and an MLP, each after a norm, to the patches; class-token blocks stay dense."""

    revision: ClassVar[int] = 1

    about = "timm's CaiT"

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, Cait)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return listed_blocks(model, LayerScaleBlock)

    def positions(self, model: nn.Module) -> TableSite | None:
        return added_positions(model)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return scaled_branches(step)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if type(module) is not TalkingHeadAttn:
            return None
        talking = (f"{name}.proj_l", f"{name}.proj_w")
        return plain_attention(name, module, dense_logits=MIXED, within=talking)

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(model, Cait)
        return super().head(model, x if model.blocks_token_only is None else model.forward_cls(x))
