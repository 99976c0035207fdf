"""Blocks and attention as most families of timm have them, with timm's names."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ClassVar

from timm.layers import LayerScale
from torch import Tensor, nn

from lowrank_vit.architectures.base import Branch, Family, checked_attention, unwalked
from lowrank_vit.architectures.parts import APART, NORMALISED, NORMS, described_linear, refuse_extras
from lowrank_vit.records.sites import AttentionSite, Site, TableSite

LAYERS, FACTORS = ("ls1", "ls2"), ("gamma_1", "gamma_2")  # of LayerScale, in blocks
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


def scaled(scale: nn.Module | Tensor | None, x: Tensor) -> Tensor:
    """Multiply by LayerScale, its layer or its factors, where there is one."""
    return x if scale is None else scale(x) if isinstance(scale, nn.Module) else scale * x


def layer_scale(scale: nn.Module | Tensor | None) -> Tensor | None:
    """Return LayerScale's factors, of its layer or as they are; None if there are none."""
    return scale.gamma if isinstance(scale, LayerScale) else scale if isinstance(scale, Tensor) else None


def two_branches(
    block: Any,
    attend: Callable[..., Tensor] | None = None,
    *,
    attention: str = "attn",
    norms: Sequence[str] = ("norm1", "norm2"),
    scales: Sequence[str] = (),
    normed: bool = False,
    foldable: Sequence[bool] = (True, True),
    **layout: Any,
) -> tuple[Branch, ...]:
    """Return the branches of a block that adds attention and an MLP to its stream, with a norm each.

    ``attend``: what calls the attention, by default the block's ``attn``; ``attention``: the module with its ``proj``, and
    ``layout``: its ``tokens`` and ``stream``. ``scales``: LayerScale's layers, or factors. ``normed``: norms follow
    attention and MLP. ``foldable``: whether a norm before them may be folded. Norms and scales are read anew in each call,
    as folding exchanges them.
    """

    def branch(place: int, name: str, output: str, compute: Callable[..., Tensor], **layout: Any) -> Branch:
        norm = attrgetter(norms[place])
        scale: Callable[[Any], Any] = attrgetter(scales[place]) if scales else lambda block: None

        def add(x: Tensor, **given: Any) -> Tensor:
            own = norm(block)
            return scaled(scale(block), own(compute(x, **given)) if normed else compute(own(x), **given))

        layout["norm"] = norms[place] if foldable[place] and not normed else ""
        layout["layer_scale"] = scales[place] if isinstance(scale(block), nn.Module) else ""
        return Branch(block, name, output, add, layer_scale(scale(block)), normed=normed, **layout)

    return (
        branch(0, attention, "proj", attend or (lambda x, **given: block.attn(x, **given)), **layout),
        branch(1, "mlp", "fc2", lambda x, **given: block.mlp(x)),
    )


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
        return two_branches(step, scales=FACTORS)
