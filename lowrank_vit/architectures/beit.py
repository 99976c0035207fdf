"""timm's BEiT: a ViT with a bias for every relative position, of each block or shared by all."""

from typing import ClassVar

from timm.models.beit import Attention, Beit, Block
from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family
from lowrank_vit.architectures.plain import added_positions, listed_blocks, plain_attention, scaled_branches
from lowrank_vit.records.sites import AttentionSite, TableSite


@FAMILIES.register("beit")
class BeitFamily(Family):
    """Describe blocks that add attention with position biases, and an MLP, each after a norm, to a sequence of tokens."""

    revision: ClassVar[int] = 1

    about = "timm's BEiT"

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, Beit)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return listed_blocks(model, Block)

    def positions(self, model: nn.Module) -> TableSite | None:
        return added_positions(model)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return scaled_branches(step)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if type(module) is not Attention:
            return None
        biased, size = module.q_bias is not None, module.window_size
        window = None if size is None else (size[0], size[1])
        positions = {"window_size": window, "class_token": window is not None}
        return plain_attention(name, module, query_bias=biased, value_bias=biased, **positions)
