"""The names to choose from, with a line about each."""

from __future__ import annotations

import inspect

from lowrank_vit.runtime.registry import Registry


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _models() -> dict[str, str]:
    import timm

    from lowrank_vit.models import STANDINS

    families = ("vit_*", "deit_*", "deit3_*", "swin_*", "beit*", "eva*")
    models = dict.fromkeys(STANDINS, "embedded stand-in, trained on digits on first use")
    for family in families:
        models.update(dict.fromkeys(timm.list_models(family), ""))
    return models


def listing(kind: str) -> dict[str, str]:
    """Return the names of a kind, each with one line about it."""
    if kind == "models":
        return _models()
    if kind in ("recipes", "methods"):
        from lowrank_vit.compression.recipes import FULL_FORMS, RECIPES

        return {name: recipe.about for name, recipe in (RECIPES if kind == "recipes" else FULL_FORMS).items()}
    registries: list[Registry]
    if kind == "decompositions":
        from lowrank_vit.stages.decompose import ATTENTIONS, DECOMPOSITIONS, MLPS, TABLES

        registries = [DECOMPOSITIONS, ATTENTIONS, MLPS, TABLES]
    elif kind == "allocators":
        from lowrank_vit.stages.allocate import ALLOCATORS

        registries = [ALLOCATORS]
    elif kind == "quantizers":
        from lowrank_vit.stages.quantize import QUANTIZERS

        registries = [QUANTIZERS]
    elif kind == "exporters":
        from lowrank_vit.stages.export.formats import EXPORTERS

        registries = [EXPORTERS]
    elif kind == "tokens":
        from lowrank_vit.stages.tokens import TOKENS

        registries = [TOKENS]
    else:
        from lowrank_vit.stages.compensate import COMPENSATIONS

        registries = [COMPENSATIONS]
    return {name: _first_line(registry.get(name)) for registry in registries for name in registry.names()}
