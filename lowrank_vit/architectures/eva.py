"""timm's EVA and what is built of its blocks: EVA02, rotary ViTs, DINOv3."""

from dataclasses import replace

from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Refusals, Sites
from lowrank_vit.architectures.plain import ROTATED, PlainFamily, plain_attention, two_branches
from lowrank_vit.records.sites import AttentionSite


@FAMILIES.register("eva")
class EvaFamily(PlainFamily):
    """Describe blocks that add attention, rotary or not, and an MLP, with a norm each, to a sequence of tokens."""

    about = "timm's EVA, EVA02, rotary ViTs, DINOv3"
    whole = Eva
    blocks = (EvaBlock, EvaBlockPostNorm)

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        """Find every attention module and MLP; with rotary positions, which the model makes, the logits stay dense."""
        sites, refusals = super().survey(model)
        if getattr(model, "rope", None) is None:
            return sites, refusals
        return [
            replace(site, dense_logits=ROTATED) if type(site) is AttentionSite else site for site in sites
        ], refusals

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return two_branches(step, normed=True) if isinstance(step, EvaBlockPostNorm) else super().branches(step)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe timm's ``EvaAttention``, whose keys have no bias, and ``AttentionRope``."""
        if type(module) is EvaAttention:
            biased = module.q_bias is not None
            return plain_attention(name, module, query_bias=biased, value_bias=biased)
        return plain_attention(name, module) if type(module) is AttentionRope else None
