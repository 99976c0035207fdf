"""A model's structure as ``config.json`` has it, and the empty model that such a description stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from lowrank_vit.attention import LowRankAttention
from lowrank_vit.compensate import empty_module
from lowrank_vit.errors import InputError
from lowrank_vit.layers import LowRankLinear, QuantizedLinear, SmallMlp
from lowrank_vit.sites import call_every_layer, replace_module
from lowrank_vit.trust import check_architecture, check_layer

PORTABLE = (str, int, float, bool, list, tuple, type(None))


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer is quantised."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def timm_config(model: nn.Module, model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """What ``timm.create_model`` needs to make the dense model again. Raises ``InputError`` where timm did not make it."""
    pretrained = {k: v for k, v in getattr(model, "pretrained_cfg", {}).items() if isinstance(v, PORTABLE)}
    architecture = pretrained.get("architecture")
    if architecture is None:
        raise InputError(f"{type(model).__name__} was not made by timm.create_model, so it could not be loaded again")
    return {
        "architecture": architecture,
        "num_classes": getattr(model, "num_classes", pretrained.get("num_classes")),
        "model_args": dict(model_args or {}),
        "pretrained_cfg": pretrained,
    }


def _layer_config(module: LowRankLinear | QuantizedLinear | LowRankAttention | SmallMlp) -> dict[str, Any]:
    if isinstance(module, LowRankAttention):
        return {"kind": "attention", **module.config}
    if isinstance(module, SmallMlp):
        return {"kind": "mlp", **module.config}
    shape = {"in_features": module.in_features, "out_features": module.out_features}
    if isinstance(module, QuantizedLinear):
        return {**shape, "bits": module.bits, "bias": module.bias is not None}
    correction = getattr(module.correction, "config", None)
    return {**shape, "rank": module.rank, "bias": module.up.bias is not None, "correction": correction}


def layer_configs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """An entry for each module that timm does not make; a compressed one comes before the factors inside it."""
    kinds = (LowRankLinear, QuantizedLinear, LowRankAttention, SmallMlp)
    return {name: _layer_config(module) for name, module in model.named_modules() if isinstance(module, kinds)}


def _empty_layer(config: Mapping[str, Any], dense: nn.Module) -> nn.Module:
    """The module of a shape, without its weights; ``dense``: what it takes the place of."""
    config = dict(config)
    kind = config.pop("kind", "linear")
    if kind == "attention":
        return LowRankAttention(**config)
    if kind == "mlp":
        return SmallMlp(act=getattr(dense, "act", nn.Identity()), **config)
    if kind != "linear":
        raise ValueError(f"a layer of unknown kind {kind!r}")
    n, d = config["in_features"], config["out_features"]
    if "bits" in config:
        return QuantizedLinear(n, d, config["bits"], config["bias"])
    correction = config["correction"]
    module = None if correction is None else empty_module(**correction)
    return LowRankLinear(n, d, config["rank"], config["bias"], module)


def empty_model(config: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """The model of a ``config.json`` with the given ``layers`` replaced, its weights still to be loaded.

    Raises ``InputError`` for a description that is none; the caller says in which folder.
    """
    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)

    try:
        check_architecture(config)
        model: nn.Module = timm.create_model(
            config["architecture"],
            pretrained=False,
            num_classes=config["num_classes"],
            pretrained_cfg=config["pretrained_cfg"],
            **config["model_args"],
        )
        for name, layer in layers.items():
            check_layer(name, layer, model.get_submodule(name))
            replace_module(model, name, _empty_layer(layer, model.get_submodule(name)))
        call_every_layer(model)
    except Exception as error:  # timm's architectures fail in their own ways on arguments that make no sense
        raise InputError(f"config.json does not describe a model ({error}): save the model again") from None
    return model
