"""The steps that the pipeline strings together: what each stage is handed, and the errors that name a layer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import cache, cost
from lowrank_vit.allocate import least_cost
from lowrank_vit.calibrate import LABELS, calibrate
from lowrank_vit.compensate import COMPENSATIONS, Compensation
from lowrank_vit.decompose import DECOMPOSITIONS
from lowrank_vit.errors import InputError
from lowrank_vit.parallel import gathered
from lowrank_vit.phases import shared
from lowrank_vit.progress import track
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import ErrorCurve, Factors, Moments, Site, as_float64
from lowrank_vit.sites import get_linear

logger = logging.getLogger(__name__)
Needs = frozenset[str] | Mapping[str, frozenset[str]]  # of all sites, or site by site
Batches = Iterable[Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Images:
    """A set of images to collect statistics on: batches, and what identifies them where they have a name.

    ``fingerprint``: a hash of their content; with it the statistics are cached on disk. ``record``: what a report
    says of them.
    """

    batches: Batches
    fingerprint: str | None = None
    record: dict[str, Any] | None = None

    def tensor(self) -> Tensor:
        """All images in memory, (N, C, H, W); of several processes, which take turns at them, those of all."""
        shares = gathered(torch.cat(list(self.each())))
        whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
        for rank, share in enumerate(shares):
            whole[rank :: len(shares)] = share
        return whole

    def each(self) -> Iterator[Tensor]:
        """The batches without labels, (B, C, H, W)."""
        return (item if isinstance(item, Tensor) else item[0] for item in self.batches)


def dense_weight(model: nn.Module, site: Site) -> Tensor:
    """The dense weight of a site, (n, d), float64."""
    return as_float64(get_linear(model, site).weight).T


def compensation_of(recipe: Recipe) -> Compensation | None:
    """The recipe's Z with its budget; ``None`` where it has none."""
    if recipe.compensation is None:
        return None
    method: Callable[..., Compensation] = COMPENSATIONS.get(recipe.compensation)
    return method(budget=recipe.budget)


def statistics_needed(recipe: Recipe) -> frozenset[str]:
    """All statistics that the recipe's methods, and the report's errors, read."""
    assert recipe.decomposition is not None
    needs = DECOMPOSITIONS.get(recipe.decomposition).needs | {"second"}
    if recipe.compensation is not None:
        needs |= {"input_second", "normalised_input_second"}
    return frozenset(needs)


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``InputError`` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used ({reason}): try --device cpu or auto") from None


def collect(
    model: nn.Module,
    sites: Sequence[Site],
    needs: Needs,
    images: Images,
    seed: int,
    progress: bool,
    probe: str = LABELS,
) -> dict[str, Moments]:
    """The moments of a set of images: from the disk where they were collected before, on the model's device."""
    device = next(model.parameters()).device

    def compute() -> dict[str, Moments]:
        return calibrate(model, sites, needs, images.batches, seed=seed, probe=probe, device=device, progress=progress)

    if images.fingerprint is None:
        return compute()
    wanted = [f"{name}: {need}" for name in needs for need in needs[name]] if isinstance(needs, Mapping) else needs
    if probe != LABELS:  # so that files from before there were other probes are still found
        wanted = [*wanted, f"probe: {probe}"]
    key = cache.moments_key(model, images.fingerprint, [site.name for site in sites], wanted, seed)
    found = cache.cached_moments(key, compute)
    return {name: replace(own, sums={k: v.to(device) for k, v in own.sums.items()}) for name, own in found.items()}


def decompose(
    model: nn.Module, recipe: Recipe, sites: Sequence[Site], moments: Mapping[str, Moments], progress: bool
) -> dict[str, Factors]:
    """All directions of every site, shared out among the processes by cost.

    Raises ``InputError`` that names the layer whose statistics cannot be used.
    """
    assert recipe.decomposition is not None
    method: Callable[[Tensor, Moments], Factors] = DECOMPOSITIONS.get(recipe.decomposition)()
    device, by_name = next(model.parameters()).device, {site.name: site for site in sites}

    def work(names: Sequence[str]) -> dict[str, Factors]:
        own = {}
        for name in track(names, "decompose", shown=progress):
            try:
                own[name] = method(dense_weight(model, by_name[name]), moments[name])
            except (torch.linalg.LinAlgError, ValueError) as error:
                raise InputError(f"layer {name!r} cannot be decomposed by {recipe.decomposition!r}: {error}") from error
        return own

    factors = shared({site.name: cubic_cost(site) for site in sites}, work, device)
    for name, found in factors.items():
        if found.ridge > 0:
            logger.info("layer %s: the statistics took a relative ridge of %g", name, found.ridge)
    caps = {own.cap for site in sites if (own := factors[site.name]).cap is not None and own.cap < site.full_rank}
    if caps:
        logger.warning("the mean image caps the rank of some layers at %s (see the report)", sorted(caps))
    return factors


def cubic_cost(site: Site) -> float:
    """What the decomposition or the closed form of a layer takes, in proportion: eigenvectors, and products."""
    n, d = site.in_features, site.out_features
    return float(n**3 + n * d * min(n, d))


def error_curves(recipe: Recipe, sites: Sequence[Site], losses: Mapping[str, Tensor]) -> list[ErrorCurve]:
    """What an allocator chooses from: the decomposition's own loss at every rank, (k + 1,), and what each rank costs."""
    z, curves = compensation_of(recipe), []
    for site in sites:
        n, d = site.in_features, site.out_features
        extra = (0 if z is None else z.parameter_count(n, d)) + (d if recipe.bias_correction and not site.bias else 0)
        loss = losses[site.name].cpu()
        curves.append(ErrorCurve(site.name, loss, n + d, n * d, extra, recipe.rank_multiple, site.full_rank))
    return curves


def budget_for(model: nn.Module, recipe: Recipe, sites: Sequence[Site], reduction: float) -> int:
    """The parameters that are left for the weights of all sites when the whole model has lost ``reduction`` of its own.

    Raises ``InputError`` for a reduction that no choice of ranks can reach; that needs no statistics.
    """
    curves = error_curves(recipe, sites, {site.name: torch.zeros(site.full_rank + 1) for site in sites})
    return budget_within(model, recipe, curves, reduction)


def budget_within(model: nn.Module, recipe: Recipe, curves: Sequence[ErrorCurve], reduction: float) -> int:
    """The parameters left for what ``curves`` choose. Raises ``InputError`` for a reduction that they cannot reach."""
    dense, largest = cost.parameter_count(model), largest_reduction(model, curves)
    if not 0 < reduction <= largest:
        raise InputError(
            f"reduction {reduction:g} is out of reach: recipe {recipe.name!r} on these layers "
            f"reaches from 0 (not included) to {int(largest * 1e4) / 1e4:g}"
        )
    return int(dense * (1 - reduction)) - (dense - sum(curve.dense_cost for curve in curves))


def largest_reduction(model: nn.Module, curves: Sequence[ErrorCurve]) -> float:
    """The share of all parameters that is removed when every curve is at its cheapest choice."""
    removed = sum(curve.dense_cost for curve in curves) - least_cost(curves)
    return removed / cost.parameter_count(model)
