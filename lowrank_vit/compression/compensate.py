"""The compensation Z of all cut layers, by the recipe's solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_vit.compression import report as reporting
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.resume import Phases
from lowrank_vit.records.images import Images
from lowrank_vit.runtime.divide import shared
from lowrank_vit.runtime.hardware import Hardware
from lowrank_vit.runtime.processes import layout
from lowrank_vit.runtime.progress import Stopwatch
from lowrank_vit.stages.compensate.solve import Solution, solve

if TYPE_CHECKING:
    from lowrank_vit.compression.analysis import Analysis


@dataclass(frozen=True)
class Compensating:
    """Find Z for residuals; ``work``: the work of each layer's closed form, up to a constant factor."""

    model: nn.Module
    recipe: Recipe
    images: Images
    seed: int
    device: torch.device
    watch: Stopwatch
    progress: bool

    def __call__(
        self,
        residuals: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        work: Mapping[str, float],
        phases: Phases,
    ) -> tuple[Mapping[str, Solution], dict[str, float]]:
        """Find Z of every layer, and the least loss, which the closed form reaches.

        residuals: name to ``W - U V^T``, (n, d); moments: name to the normalised second moment, (n, n).
        """

        def closed_form() -> dict[str, Solution]:
            def solve_share(names: Sequence[str]) -> dict[str, Solution]:
                share = {name: residuals[name] for name in names}
                return solve(self.recipe.compensation, share, moments, progress=self.progress)  # type: ignore[arg-type]

            return shared(work, solve_share, self.device)

        if self.recipe.solver == "closed_form":
            with self.watch("compensate"):
                solutions: Mapping[str, Solution] = phases("compensate", closed_form)
            best = solutions
        else:
            with self.watch("compensate"):
                solutions = phases("compensate", lambda: self._descend(residuals, moments, work, phases))
            with self.watch("closed_form"):
                best = phases("closed_form", closed_form)
        return solutions, {name: solution.loss_after for name, solution in best.items()}

    def _descend(
        self,
        residuals: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        work: Mapping[str, float],
        phases: Phases,
    ) -> Mapping[str, Solution]:
        """Find Z of every layer by one of the gradient solvers."""
        method = self.recipe.compensation
        assert method is not None
        options: dict[str, Any] = {"steps": self.recipe.steps, "optimizer": self.recipe.optimizer}
        options |= {"seed": self.seed, "progress": self.progress}
        if self.recipe.solver != "minibatch":

            def solve_share(names: Sequence[str]) -> dict[str, Solution]:
                share = {name: residuals[name] for name in names}
                return solve(method, share, moments, solver=self.recipe.solver, **options)

            return shared(work, solve_share, self.device)
        from lowrank_vit.stages.compensate.minibatch import compensate_minibatch  # Lightning takes seconds to import

        options["hardware"] = Hardware(*layout(), accelerator="gpu" if self.device.type == "cuda" else "cpu")
        options["checkpoint_dir"] = phases.place("minibatch")
        return compensate_minibatch(self.model, method, residuals, moments, self.images.tensor(), **options)


def compensated(
    analysis: Analysis, cuts: Mapping[str, Any], phases: Phases
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Add Z to the cuts that have a residual; return them and the report's entry."""
    recipe = analysis.recipe
    if recipe.compensation is None:
        return dict(cuts), None
    residuals = {name: cut.residual for name, cut in cuts.items() if cut.residual is not None}
    moments = {
        name: analysis.moments[name].sums["normalised_input_second"] / analysis.moments[name].images
        for name in residuals
    }
    work = {unit.name: unit.work for unit in analysis.units if unit.name in residuals}
    solver = Compensating(
        analysis.model, recipe, analysis.images, analysis.seed, analysis.device, analysis.watch, analysis.progress
    )
    solutions, least = solver(residuals, moments, work, phases) if residuals else ({}, {})
    added = {
        name: replace(cut, z=solutions[name], least=least[name]) if name in solutions else cut
        for name, cut in cuts.items()
    }
    return added, reporting.compensation_entry(recipe, solutions)
