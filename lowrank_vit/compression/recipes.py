"""The named recipes, in the order of lists and tables. The files of ``methods`` add them."""

from numbers import Real

from lowrank_vit.compression.recipe import ADDED, Recipe
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown

ORDER = (
    "svd", "fwsvd", "asvd", "svd_llm", "svd_llm_update", "afm_energy", "paper", "paper_literal", "paper_charitable",
    "exact", "exact_normalised", "loss_aware", "heads", "best", "aafm", "flar", "fwsvd_search", "asvd_search", "comcat0",
    "comcat", "ssp", "vtp-taylor", "vbp", "corp", "corp_layerwise", "wd-depth", "losparse0", "vtp-gates", "wdp-gates",
    "spvit-he-gates", "vtp", "wdpruning", "spvit-he", "s2vite", "losparse",
)  # fmt: skip
RENAMED = {"comcat_search": "comcat"}  # in older reports, published rows and commands


def _listed(labelled: bool) -> dict[str, Recipe]:
    """Return the recipes that train on labelled images, or all others, by their names; those without a place come last."""
    places = {name: place for place, name in enumerate(ORDER)}
    names = sorted(ADDED.names(), key=lambda name: places.get(name, len(places)))
    return {name: recipe for name in names if (recipe := ADDED.get(name)).labelled == labelled}


RECIPES = _listed(labelled=False)
FULL_FORMS = _listed(labelled=True)


def as_recipe(given: str | Recipe) -> Recipe:
    """Return the recipe, or the one of that name. Raises ``InputError`` for anything else, such as a size."""
    if isinstance(given, str):
        return get_recipe(given)
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Real):
        raise InputError(f"{given} stands where the recipe does: write reduction={given}, or name a recipe first")
    kind = type(given).__name__
    raise InputError(f"the recipe is a {kind}: give the name of one, such as 'best', or an instance of Recipe")


def get_recipe(name: str) -> Recipe:
    """Look up the recipe called ``name``, among full forms, too. Raises ``InputError`` with the nearest name otherwise."""
    known, name = {**RECIPES, **FULL_FORMS}, RENAMED.get(name, name)
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]
