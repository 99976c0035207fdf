"""The compensation Z of all cut layers, by the recipe's solver."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from lowrank_vit.compression import report as reporting
from lowrank_vit.compression.case import Case
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.processes import divide_work, layout
from lowrank_vit.stages.compensate import Compensation
from lowrank_vit.stages.compensate.solve import Solution, solve

Solutions = Mapping[str, Solution]


def compensate(case: Case, cuts: Mapping[str, Any], plan: RankPlan) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Add Z to the cuts that have a residual; return them and the report's entry."""
    recipe, store = case.recipe, case.services.store.keyed_by(dict(plan.ranks))
    if recipe.compensation is None:
        return dict(cuts), None
    residuals = {name: cut.residual for name, cut in cuts.items() if cut.residual is not None}
    solutions, best = _solved(case, recipe.compensation, residuals, store) if residuals else ({}, {})
    added = {
        name: replace(cut, z=solutions[name], least=best[name].loss_after) if name in solutions else cut
        for name, cut in cuts.items()
    }
    return added, reporting.compensation_entry(recipe, solutions)


def _solved(
    case: Case, method: Compensation, residuals: Mapping[str, Tensor], store: ResumeStore
) -> tuple[Solutions, Solutions]:
    """Find Z of residuals ``W - U V^T``, (n, d), by the recipe's solver, and by the closed form, which loses least."""
    recipe, services = case.recipe, case.services
    moments = {
        name: case.moments[name].sums["normalised_input_second"] / case.moments[name].images for name in residuals
    }
    work = {unit.name: unit.work for unit in case.units if unit.name in residuals}
    options: dict[str, Any] = {"steps": recipe.steps, "optimizer": recipe.optimizer}
    options |= {"seed": services.seed, "progress": services.progress}

    def by_moments(solver: str) -> Solutions:
        def solve_share(names: Sequence[str]) -> dict[str, Solution]:
            return solve(method, {name: residuals[name] for name in names}, moments, solver, **options)

        return divide_work(work, solve_share, services.device)

    def by_images() -> Solutions:
        from lowrank_vit.stages.compensate.minibatch import compensate_minibatch  # Lightning takes seconds to import

        hardware = Hardware(*layout(), accelerator="gpu" if services.device.type == "cuda" else "cpu")
        given = (case.model, method, residuals, moments, case.images.tensor())
        return compensate_minibatch(*given, hardware=hardware, checkpoint_dir=store.place("minibatch"), **options)

    def phase(name: str, compute: Callable[[], Solutions]) -> Solutions:
        with services.watch(name):
            return store(name, compute)

    solutions = phase("compensate", by_images if recipe.solver == "minibatch" else partial(by_moments, recipe.solver))
    if recipe.solver == "closed_form":
        return solutions, solutions
    return solutions, phase("closed_form", partial(by_moments, "closed_form"))
