"""The arguments of ``timm.create_model`` that a model shows: they stand in none of its records."""

from typing import Any

from torch import nn

from lowrank_vit.modules.low_rank_attention import LowRankAttention


def shown_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that a timm model, or its compressed form, shows: its classes, image size and widths.

    An argument that it does not show is not in the result.
    """
    stem, stages = getattr(model, "patch_embed", None), _children(getattr(model, "layers", None))
    blocks = [_children(getattr(stage, "blocks", None)) for stage in stages] or [
        _children(getattr(model, "blocks", None))
    ]
    firsts = [getattr(each[0], "attn", None) for each in blocks if each]
    shown = {
        "num_classes": getattr(_classifier(model), "out_features", None),
        "img_size": _side(getattr(stem, "img_size", None)),
        "patch_size": _side(getattr(stem, "patch_size", None)),
        "in_chans": getattr(getattr(stem, "proj", None), "in_channels", None),
        "embed_dim": getattr(getattr(stem, "proj", None), "out_channels", None),
        "global_pool": getattr(model, "global_pool", None),
        "class_token": getattr(model, "has_class_token", None),
        "reg_tokens": getattr(model, "num_reg_tokens", None),
        **_by_stage("depth", [len(each) for each in blocks], staged=bool(stages)),
        **_by_stage("num_heads", [_heads(first) for first in firsts], staged=bool(stages)),
    }
    return {name: value for name, value in shown.items() if isinstance(value, int | str | list)}


def _children(module: nn.Module | None) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.Sequential | nn.ModuleList) else []


def _classifier(model: nn.Module) -> object:
    get: Any = getattr(model, "get_classifier", None)
    return None if get is None else get()


def _side(size: Any) -> Any:
    """Return one number for a square, a list for another rectangle."""
    if not isinstance(size, tuple | list):
        return size
    return size[0] if len(set(size)) == 1 else list(size)


def _heads(attention: Any) -> int | None:
    if isinstance(attention, LowRankAttention):
        return len(attention.value.widths)
    return getattr(attention, "num_heads", None)


def _by_stage(name: str, values: list[Any], *, staged: bool) -> dict[str, Any]:
    """Name a per-stage value as timm does: ``depths`` for stages, ``depth`` for blocks in one row."""
    if not values or None in values:
        return {}
    if staged:
        return {"depths" if name == "depth" else name: values}
    return {name: values[0]}
