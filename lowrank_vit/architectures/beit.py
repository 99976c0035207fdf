"""timm's BEiT: a ViT with a bias for every relative position, of each block or shared by all."""

from timm.models.beit import Attention, Beit, Block
from torch import nn

from lowrank_vit.architectures.base import FAMILIES
from lowrank_vit.architectures.plain import PlainFamily, plain_attention
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("beit")
class BeitFamily(PlainFamily):
    """Describe blocks that add attention with position biases, and an MLP, each after a norm, to a sequence of tokens."""

    about = "timm's BEiT"
    whole = Beit
    blocks = (Block,)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if type(module) is not Attention:
            return None
        biased, size = module.q_bias is not None, module.window_size
        window = None if size is None else (size[0], size[1])
        positions = {"window_size": window, "class_token": window is not None}
        return plain_attention(name, module, query_bias=biased, value_bias=biased, **positions)
