"""Blocks and attention as most families of timm have them, with timm's names."""

from collections.abc import Callable
from typing import Any, ClassVar

from timm.layers import LayerScale
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, Family, checked_attention, unwalked
from lowrank_vit.architectures.parts import APART, NORMALISED, NORMS, described_linear, refuse_extras
from lowrank_vit.records.sites import AttentionSite, Site, TableSite

EXTRAS = {"norm": "normalises its values", "gate": "gates its values"}
# why queries and keys stay dense: they are ...
ROTATED, COSINE = "rotated by their positions", "compared by their cosine"
MIXED, BIASED = "mixed across heads", "compared with biases by position"


def plain_attention(name: str, module: Any, **further: Any) -> AttentionSite:
    """Describe an attention module of two layers called ``qkv`` and ``proj``; ``further``: fields of its site.

    Three layers, ``q_proj``, ``k_proj`` and ``v_proj``, may take the place of ``qkv``.
    """
    refuse_extras(name, module, EXTRAS)
    apart = module.qkv is None
    if apart:
        further = {"dense_logits": APART, "beside": (f"{name}.q_proj", f"{name}.k_proj"), **further}
    if has_norms(module):
        further["dense_logits"] = NORMALISED
    values = "v_proj" if apart else "qkv"
    made = described_linear(f"{name}.{values}", getattr(module, values), module.num_heads)
    proj = described_linear(f"{name}.proj", module.proj)
    return checked_attention(AttentionSite(name, made, proj, proj.in_features // module.num_heads, **further))


def has_norms(attention: nn.Module) -> bool:
    """Tell whether an attention module normalises its queries or keys."""
    return not all(isinstance(getattr(attention, norm, None), nn.Identity | None) for norm in NORMS)


def is_plain(name: str, attention: nn.Module) -> bool:
    """Tell whether queries, keys and values come from one layer and are used as they are.

    The layers themselves may be smaller ones. Raises ``UnknownWholeError`` for values that are changed on the way.
    """
    refuse_extras(name, attention, EXTRAS)
    return getattr(attention, "qkv", None) is not None and not has_norms(attention)


def added_positions(model: Any) -> TableSite | None:
    """Describe a position embedding that is added as it is, whatever the image's size, before the layer ``pos_drop``."""
    table = getattr(model, "pos_embed", None)
    shape: tuple[int, ...] = tuple(getattr(table, "shape", ()))
    if len(shape) != 3 or shape[0] != 1 or getattr(model, "dynamic_img_size", False):
        return None
    _, tokens, width = shape
    return TableSite("pos_embed", tokens, width, Site("pos_drop", width, width, bias=False))


def listed_blocks(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """Return the blocks in a model's list ``blocks``, by name. Raises ``InputError`` where one is of another kind."""
    blocks = {f"blocks.{name}": block for name, block in model.get_submodule("blocks").named_children()}
    other = next((type(block).__name__ for block in blocks.values() if type(block) not in kinds), None)
    if other is not None or not blocks:
        raise unwalked(model, str(other))
    return blocks


def scaled(scale: Tensor | None, x: Tensor) -> Tensor:
    """Multiply by LayerScale's factors, where there are any."""
    return x if scale is None else scale * x


def scaled_branches(block: Any) -> tuple[Branch, ...]:
    """Return the branches of a block whose LayerScale is in ``gamma_1`` and ``gamma_2``."""

    def attend(x: Tensor, **given: Tensor) -> Tensor:
        return scaled(block.gamma_1, block.attn(block.norm1(x), **given))

    def think(x: Tensor, **given: Tensor) -> Tensor:
        return scaled(block.gamma_2, block.mlp(block.norm2(x)))

    return (
        Branch(block, "attn", "proj", attend, block.gamma_1, norm="norm1"),
        Branch(block, "mlp", "fc2", think, block.gamma_2, norm="norm2"),
    )


def layer_scale(module: nn.Module) -> Tensor | None:
    """Return LayerScale's factors; None if there are none."""
    return module.gamma if isinstance(module, LayerScale) else None


def layer_branches(block: Any, attention: Callable[..., Tensor] | None = None) -> tuple[Branch, ...]:
    """Return the branches of a block whose LayerScale is in the layers ``ls1`` and ``ls2``.

    ``attention``: what calls its attention, by default the module itself.
    """

    def attend(x: Tensor, **given: Any) -> Tensor:
        return block.ls1((attention or block.attn)(block.norm1(x), **given))

    def think(x: Tensor, **given: Tensor) -> Tensor:
        return block.ls2(block.mlp(block.norm2(x)))

    return (
        Branch(block, "attn", "proj", attend, layer_scale(block.ls1), norm="norm1", layer_scale="ls1"),
        Branch(block, "mlp", "fc2", think, layer_scale(block.ls2), norm="norm2", layer_scale="ls2"),
    )


def normed_branches(block: Any) -> tuple[Branch, ...]:
    """Return the branches of a block whose norms follow attention and MLP."""

    def attend(x: Tensor, **given: Tensor) -> Tensor:
        return block.norm1(block.attn(x, **given))

    def think(x: Tensor, **given: Tensor) -> Tensor:
        return block.norm2(block.mlp(x))

    return Branch(block, "attn", "proj", attend, normed=True), Branch(block, "mlp", "fc2", think, normed=True)


class PlainFamily(Family):
    """Describe a class of timm's whose blocks stand in a list, behind a position embedding that is added, if any."""

    whole: ClassVar[type[nn.Module]]
    blocks: ClassVar[tuple[type[nn.Module], ...]]

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, self.whole)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return listed_blocks(model, *self.blocks)

    def positions(self, model: nn.Module) -> TableSite | None:
        return added_positions(model)

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return scaled_branches(step)
