"""The form of a model that the families describe, whichever library it is from."""

from torch import nn

from lowrank_vit.architectures.linears import call_every_layer, mark_shared
from lowrank_vit.architectures.origin import image_tower
from lowrank_vit.modules.surgery import replace_module


def canonical(model: nn.Module) -> nn.Module:
    """Give a model the parts that the families describe, in place; its outputs are the same.

    Every layer is called as a module; attention and MLPs of Hugging Face's models, blocks around torch's own attention,
    of torchvision's Swin, and of classes that are not known but compute the same, become timm's. Layers that share a
    parameter are marked. Of a CLIP, the text's tower stays as it is.
    """
    from lowrank_vit.architectures.encoder_parts import exchange_blocks
    from lowrank_vit.architectures.imitated import exchange_unknown
    from lowrank_vit.architectures.torchvision_swin import exchange_windows
    from lowrank_vit.architectures.transformers_parts import exchange_parts
    from lowrank_vit.architectures.walk import check_walk

    if tower := image_tower(model):
        replace_module(model, tower, canonical(model.get_submodule(tower)))
        return mark_shared(model)
    for exchange in (call_every_layer, exchange_parts, exchange_blocks, exchange_windows, exchange_unknown):
        model = exchange(model)
    return check_walk(mark_shared(model))
