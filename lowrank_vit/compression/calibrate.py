"""Statistics of a model's layers: collected, or read from disk if they were collected before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from lowrank_vit.compression.case import Services
from lowrank_vit.compression.find import FoundUnits
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.objectives import Objective
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import Site
from lowrank_vit.stages.calibrate import cache
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.units.base import united

Needs = frozenset[str] | Mapping[str, frozenset[str]]  # of all sites, or site by site
FIRST_PROBE = "labels"  # files in the cache do not name it, as it was once the only one
CLASSIFICATION = Classification()


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Needs,
    images: Images,
    seed: int,
    progress: bool,
    objective: Objective = CLASSIFICATION,
) -> dict[str, Moments]:
    """Collect the moments of a set of images, on the model's device; those of named images are cached on disk."""
    device = next(model.parameters()).device

    def compute() -> dict[str, Moments]:
        options = {"seed": seed, "device": device, "progress": progress}
        return calibrate(model, sites, needs, images.batches, objective=objective, **options)  # type: ignore[arg-type]

    if images.fingerprint is None:
        return compute()
    wanted = [f"{name}: {need}" for name in needs for need in needs[name]] if isinstance(needs, Mapping) else needs
    if objective.probe_name != FIRST_PROBE:
        wanted = [*wanted, f"probe: {objective.probe_name}"]
    key = cache.moments_key(model, images.fingerprint, [site.name for site in sites], wanted, seed)
    moments = cache.cached_moments(key, compute)
    return {
        name: replace(layer, sums={statistic: total.to(device) for statistic, total in layer.sums.items()})
        for name, layer in moments.items()
    }


def calibrated(
    model: nn.Module,
    found: FoundUnits,
    seen: Images,
    unseen: Images | None,
    services: Services,
    moments: Mapping[str, Moments] | None = None,
) -> tuple[Recipe, Mapping[str, Moments], dict[str, Moments] | None]:
    """Collect what all units need of the seen images, and what the report needs of unseen ones.

    Returns the recipe, too, whose objective is fitted to the images. ``moments``: of the seen images, where they are known.
    """
    recipe, units, (seed, progress) = found.recipe, found.units, (services.seed, services.progress)
    with services.watch("calibrate"):
        if recipe.needs_objective:
            recipe = replace(recipe, objective=recipe.objective.fitted(model, seen.batches))
        layers = list({site.name: site for unit in units for site in unit.linears}.values())
        needs = united(unit.needs() for unit in units)
        moments = moments or collect(model, layers, needs, seen, seed, progress, recipe.objective)
    if unseen is None:
        return recipe, moments, None
    reported = united(unit.report_needs() for unit in units)
    with services.watch("held_out"):
        outputs = [site for site in layers if site.name in reported]
        return recipe, moments, collect(model, outputs, reported, unseen, seed, progress)
