"""The compensation Z of all cut layers, by the recipe's solver."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lowrank_vit.compression import report as reporting
from lowrank_vit.compression.case import Case, Services
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.processes import divide_work, layout
from lowrank_vit.stages.compensate.solve import Solution, solve


@dataclass(frozen=True)
class Compensating:
    """Find Z for residuals; ``work``: the work of each layer's closed form, up to a constant factor."""

    model: nn.Module
    recipe: Recipe
    images: Images
    services: Services

    def __call__(
        self,
        residuals: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        work: Mapping[str, float],
        store: ResumeStore,
    ) -> tuple[Mapping[str, Solution], dict[str, float]]:
        """Find Z of every layer, and the least loss, which the closed form reaches.

        residuals: name to ``W - U V^T``, (n, d); moments: name to the normalised second moment, (n, n).
        """

        def closed_form() -> dict[str, Solution]:
            def solve_share(names: Sequence[str]) -> dict[str, Solution]:
                share = {name: residuals[name] for name in names}
                return solve(self.recipe.compensation, share, moments, progress=self.services.progress)  # type: ignore[arg-type]

            return divide_work(work, solve_share, self.services.device)

        if self.recipe.solver == "closed_form":
            with self.services.watch("compensate"):
                solutions: Mapping[str, Solution] = store("compensate", closed_form)
            best = solutions
        else:
            with self.services.watch("compensate"):
                solutions = store("compensate", lambda: self._descend(residuals, moments, work, store))
            with self.services.watch("closed_form"):
                best = store("closed_form", closed_form)
        return solutions, {name: solution.loss_after for name, solution in best.items()}

    def _descend(
        self,
        residuals: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        work: Mapping[str, float],
        store: ResumeStore,
    ) -> Mapping[str, Solution]:
        method = self.recipe.compensation
        assert method is not None
        options: dict[str, Any] = {"steps": self.recipe.steps, "optimizer": self.recipe.optimizer}
        options |= {"seed": self.services.seed, "progress": self.services.progress}
        if self.recipe.solver != "minibatch":

            def solve_share(names: Sequence[str]) -> dict[str, Solution]:
                share = {name: residuals[name] for name in names}
                return solve(method, share, moments, solver=self.recipe.solver, **options)

            return divide_work(work, solve_share, self.services.device)
        from lowrank_vit.stages.compensate.minibatch import compensate_minibatch  # Lightning takes seconds to import

        options["hardware"] = Hardware(*layout(), accelerator="gpu" if self.services.device.type == "cuda" else "cpu")
        options["checkpoint_dir"] = store.place("minibatch")
        return compensate_minibatch(self.model, method, residuals, moments, self.images.tensor(), **options)


def compensate(case: Case, cuts: Mapping[str, Any], plan: RankPlan) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Add Z to the cuts that have a residual; return them and the report's entry."""
    recipe = case.recipe
    if recipe.compensation is None:
        return dict(cuts), None
    residuals = {name: cut.residual for name, cut in cuts.items() if cut.residual is not None}
    moments = {
        name: case.moments[name].sums["normalised_input_second"] / case.moments[name].images for name in residuals
    }
    work = {unit.name: unit.work for unit in case.units if unit.name in residuals}
    solver, store = Compensating(case.model, recipe, case.images, case.services), case.services.store
    solutions, least = solver(residuals, moments, work, store.keyed_by(dict(plan.ranks))) if residuals else ({}, {})
    added = {
        name: replace(cut, z=solutions[name], least=least[name]) if name in solutions else cut
        for name, cut in cuts.items()
    }
    return added, reporting.compensation_entry(recipe, solutions)
