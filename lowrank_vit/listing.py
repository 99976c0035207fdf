"""What the commands offer, with a line about each."""

from __future__ import annotations

import inspect

from lowrank_vit.registry import Registry


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _models() -> dict[str, str]:
    import timm

    from lowrank_vit.models import STANDINS

    families = ("vit_*", "deit_*", "deit3_*", "swin_*", "beit*", "eva*")
    found = dict.fromkeys(STANDINS, "embedded stand-in, trained on digits on first use")
    for family in families:
        found.update(dict.fromkeys(timm.list_models(family), ""))
    return found


def listing(kind: str) -> dict[str, str]:
    """Names of a kind, each with the first line of what it is."""
    if kind == "models":
        return _models()
    if kind == "recipes":
        from lowrank_vit.recipes import RECIPES

        return {name: recipe.about for name, recipe in RECIPES.items()}
    registries: list[Registry]
    if kind == "decompositions":
        from lowrank_vit.decompose import ATTENTIONS, DECOMPOSITIONS, MLPS

        registries = [DECOMPOSITIONS, ATTENTIONS, MLPS]
    elif kind == "allocators":
        from lowrank_vit.allocate import ALLOCATORS

        registries = [ALLOCATORS]
    else:
        from lowrank_vit.compensate import COMPENSATIONS

        registries = [COMPENSATIONS]
    return {name: _first_line(registry.get(name)) for registry in registries for name in registry.names()}
