"""Revisions: say what made a number, in words that survive renamed files, mended messages and moved functions.

Whoever changes what a method or a part of the engine computes raises its revision: that of a method is its class's
``revision: ClassVar[int]``, 1 where it has none, that of the engine's parts is below. ``tests/golden/numerics.json`` holds
what they make of small models, and a test fails, naming the revision to raise, where that changes.
"""

from collections.abc import Iterable
from typing import Any

from lowrank_vit.architectures.base import FAMILIES
from lowrank_vit.compression.recipe import Recipe, registries
from lowrank_vit.runtime.registry import Registry, revision_of
from lowrank_vit.stages.quantize import QUANTIZERS
from lowrank_vit.stages.tokens import TOKENS

ENGINE = {
    "images": 1,  # how they are drawn, held out, decoded and transformed
    "standins": 1,  # the models trained on digits, and how
    "calibrate": 1,  # statistics: what is collected, summed and averaged
    "plan": 1,  # from losses and costs to the sizes within a budget, around the allocator
    "cut": 1,  # smaller modules: cut, folded, balanced, pivoted
    "compensate": 1,  # the solvers of Z
    "train": 1,  # fine-tuning, distillation, the training of gates and of token rules
    "quantise": 1,  # rounding around the quantiser, and the files
    "evaluate": 1,  # accuracy, divergence, counts of parameters and multiply-accumulates
    "time": 1,  # seconds and speed-ups
    "scans": 1,  # VMamba's scans replaced by their mean
    "customize": 1,  # diffusion models: their training, sampling and judging, around the delta
}
BESIDE: dict[str, Registry[Any]] = {"family": FAMILIES, "quantizer": QUANTIZERS, "tokens": TOKENS}  # a recipe


def revisions_of(parts: Iterable[str], recipe: Recipe | None = None) -> dict[str, int]:
    """Return the revisions of parts of the engine, of methods such as ``tokens.tome``, and of all methods of a recipe.

    Raises ``KeyError`` or ``InputError`` for a part that does not exist.
    """
    found = {} if recipe is None else recipe.revisions
    known = registries() | BESIDE
    for part in parts:
        kind, _, name = part.partition(".")
        found[part] = revision_of(known[kind].get(name)) if name else ENGINE[kind]
    return dict(sorted(found.items()))
