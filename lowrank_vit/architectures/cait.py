"""timm's CaiT: heads that talk to each other, and a class token that comes after the blocks."""

from timm.models.cait import Cait, LayerScaleBlock, TalkingHeadAttn
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES
from lowrank_vit.architectures.plain import MIXED, PlainFamily, plain_attention
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("cait")
class CaitFamily(PlainFamily):
    """Describe blocks that add attention and an MLP, each after a norm, to the patches; class-token blocks stay dense."""

    about = "timm's CaiT"
    whole = Cait
    blocks = (LayerScaleBlock,)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if type(module) is not TalkingHeadAttn:
            return None
        talking = (f"{name}.proj_l", f"{name}.proj_w")
        return plain_attention(name, module, dense_logits=MIXED, within=talking)

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(model, Cait)
        return super().head(model, x if model.blocks_token_only is None else model.forward_cls(x))
