"""The named recipes, as data."""

from __future__ import annotations

from numbers import Real
from typing import Any

from lowrank_vit.compression import rivals
from lowrank_vit.compression.full_forms import FULL_FORMS
from lowrank_vit.compression.recipe import Recipe, named
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import unknown
from lowrank_vit.stages.allocate.greedy import GreedyMarginal
from lowrank_vit.stages.allocate.paper import GradualReduction
from lowrank_vit.stages.allocate.uniform import Uniform
from lowrank_vit.stages.compensate.kinds.low_rank import LowRank
from lowrank_vit.stages.correct.measured_losses import MeasuredLosses
from lowrank_vit.stages.correct.output_refit import OutputRefit
from lowrank_vit.stages.decompose.attention.heads import HeadLowRank
from lowrank_vit.stages.decompose.linear.aafm import FeatureMimicking
from lowrank_vit.stages.decompose.linear.asvd import ActivationScaledSVD
from lowrank_vit.stages.decompose.linear.fwsvd import FisherWeightedSVD
from lowrank_vit.stages.decompose.linear.representative import RepresentativeSVD
from lowrank_vit.stages.decompose.linear.svd import PlainSVD
from lowrank_vit.stages.decompose.linear.two_sided import TwoSided
from lowrank_vit.stages.decompose.linear.whitened import (
    Whitened,
    WhitenedCentred,
    WhitenedCentredNormalised,
    WhitenedNormalised,
)
from lowrank_vit.stages.decompose.mlp.interpolate import Interpolation
from lowrank_vit.stages.decompose.scan.leave_out import LeaveOut


def _linear(decomposition: Any) -> dict[str, Any]:
    return {"decomposition": decomposition}


RECIPES = {
    recipe.name: recipe
    for recipe in (
        named("svd", units=_linear(PlainSVD()), allocator=Uniform()),
        named("fwsvd", units=_linear(FisherWeightedSVD()), allocator=Uniform()),
        named("asvd", units=_linear(ActivationScaledSVD()), allocator=Uniform()),
        named("svd_llm", units=_linear(Whitened()), allocator=Uniform()),
        named("afm_energy", units=_linear(FeatureMimicking()), allocator=GreedyMarginal(), bias_correction=True),
        named(
            "paper",
            units=_linear(RepresentativeSVD()),
            allocator=GradualReduction(),
            compensation=LowRank(),
            solver="minibatch",
        ),
        named(
            "paper_charitable",
            units=_linear(WhitenedNormalised()),
            allocator=GradualReduction(),
            compensation=LowRank(),
            solver="minibatch",
        ),
        named("exact", units=_linear(WhitenedCentred()), bias_correction=True),
        named("exact_normalised", units=_linear(WhitenedCentredNormalised()), bias_correction=True),
        named("loss_aware", units=_linear(TwoSided()), bias_correction=True),
        named(
            "best",
            units={"attention": HeadLowRank(), "mlp": Interpolation(), "scan": LeaveOut(), **_linear(TwoSided())},
            bias_correction=True,
            objective=Classification(sampling="signs"),
            measured=MeasuredLosses(),
            refit=OutputRefit(),
        ),
        *rivals.RECIPES,
    )
}


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
    known = {**RECIPES, **FULL_FORMS}
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]
