"""``list``: show the names to choose from."""

import argparse
import importlib
import inspect
import json

from lowrank_vit.runtime.registry import Registry

DEFAULT = "best"  # recipe
REGISTRIES = {  # by the kind: their folder of ``stages``, and their names there
    "decompositions": ("decompose", ("DECOMPOSITIONS", "ATTENTIONS", "MLPS", "TABLES")),
    "allocators": ("allocate", ("ALLOCATORS",)),
    "quantizers": ("quantize", ("QUANTIZERS",)),
    "exporters": ("export.formats", ("EXPORTERS",)),
    "tokens": ("tokens", ("TOKENS",)),
    "compensations": ("compensate", ("COMPENSATIONS",)),
}


HELP = "list the models, recipes or methods to choose from"
EXAMPLE = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    kinds = (
        "models", "recipes", "methods", "decompositions", "allocators", "compensations", "quantizers", "tokens", "exporters",
    )  # fmt: skip
    parser.add_argument("kind", choices=kinds, metavar=f"{{{','.join(kinds)}}}", help="what to list")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(args: argparse.Namespace) -> None:
    """Print the names of a kind, one a line."""
    entries = listing(args.kind)
    if args.json:
        print(json.dumps(list(entries)))
        return
    if args.kind == "recipes":
        entries = {f"{DEFAULT} (default)": entries.pop(DEFAULT), **entries}
    width = max(map(len, entries))
    for name, about in entries.items():
        print(f"{name:{width}}  {about}".rstrip())


def listing(kind: str) -> dict[str, str]:
    """Return the names of a kind, each with one line about it."""
    if kind == "models":
        return _models()
    if kind in ("recipes", "methods"):
        from lowrank_vit.compression.recipes import FULL_FORMS, RECIPES

        return {name: recipe.about for name, recipe in (RECIPES if kind == "recipes" else FULL_FORMS).items()}
    module, names = REGISTRIES[kind]
    found: list[Registry] = [getattr(importlib.import_module(f"lowrank_vit.stages.{module}"), name) for name in names]
    docs = {name: inspect.getdoc(registry.get(name)) or "" for registry in found for name in registry.names()}
    return {name: text.split("\n")[0] for name, text in docs.items()}


def _models() -> dict[str, str]:
    import timm

    from lowrank_vit.models import STANDINS

    families = ("vit_*", "deit_*", "deit3_*", "swin_*", "beit*", "eva*")
    models = dict.fromkeys(STANDINS, "embedded stand-in, trained on digits on first use")
    for family in families:
        models.update(dict.fromkeys(timm.list_models(family), ""))
    return models
