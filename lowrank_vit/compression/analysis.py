"""The analysis of a model, unit by unit, before a size is chosen; any reduction follows from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lowrank_vit.compression.case import Case
from lowrank_vit.compression.combined import CombinedPlanner
from lowrank_vit.compression.compensate import compensate
from lowrank_vit.compression.cut import correct, cut, fold, pivots, resized
from lowrank_vit.compression.measure import measure_plan, measured_curves
from lowrank_vit.compression.plan import planner_within
from lowrank_vit.compression.report import make_report
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.modules.fold import balance_directions
from lowrank_vit.modules.pivoted_linear import pivot
from lowrank_vit.records.budgets import Size, budgets_of
from lowrank_vit.records.costs import PARAMETERS
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.report import Report, plain
from lowrank_vit.runtime.hardware import isolated
from lowrank_vit.runtime.progress import track
from lowrank_vit.stages.tokens.merging import PlannedMerging


@dataclass(frozen=True, kw_only=True)
class Analysis(Case):
    """Hold what is known of a model before a size is chosen, and make models of any size."""

    @cached_property
    def priced_losses(self) -> list[ErrorCurve]:
        """Return the curves that an allocator chooses from: with measured losses, where the recipe senses them."""
        return self.curves if self.recipe.sense is None else measured_curves(self, self.recipe.sense)

    @isolated()
    def plan(self, size: Size, cost: str = PARAMETERS) -> RankPlan:
        """Choose every unit's size so that the whole model loses a share of its ``cost``, or keeps within a budget.

        ``size``: the share, or a budget: ``{"macs": 0.5}``, the share that remains, or ``{"bytes": "6MiB"}``.
        Of several budgets, ``{"params": 0.5, "macs": 0.6}``, all hold.
        Raises ``InputError`` for a size that no choice can reach.
        """
        budgets = budgets_of(size, cost).parts
        pivoted = all(self.recipe.pivots(budget.cost) for budget in budgets)
        planners = [
            planner_within(self, budget, self.priced_losses, self.measure, pivoted=pivoted) for budget in budgets
        ]
        return (planners[0] if len(planners) == 1 else CombinedPlanner.of(planners)).plan()

    @isolated()
    def measure(
        self, plan: RankPlan, batches: Iterable[Tensor], images: int, store: ResumeStore | None = None
    ) -> dict[str, tuple[int, float]]:
        """Measure the loss of every unit at its planned size, with the rest of the model dense.

        A unit that stays dense is measured at its ``probe_rank``. Returns, by unit, the size and the divergence from the
        dense model on the first ``images`` of the batches. ``store`` keeps each unit's, for these batches alone.
        """
        return measure_plan(self, plan, batches, images, store)

    def compress(self, size: Size, cost: str = PARAMETERS) -> tuple[nn.Module, Report]:
        """Make a compressed copy, on the given model's device, and its report (also its ``compression_report``)."""
        small, report = self.apply(self.plan(size, cost))
        return small.to(self.subject.home), report

    def resized(self, plan: RankPlan) -> nn.Module:
        """Make a model of a plan's sizes, without Z and refit: as large and as fast as the result."""
        return resized(self, plan)

    @isolated()
    def apply(self, plan: RankPlan, tokens: PlannedMerging | None = None) -> tuple[nn.Module, Report]:
        """Compress by a given plan, as ``compress`` does by its own: a size of every unit, or ``None`` for dense.

        ``tokens``: the rule by which blocks hand on fewer of them.
        """
        cuts, compensation = compensate(self, cut(self, plan), plan)
        small = fold(self, cuts)
        corrections: dict[str, Any] = {"compensation": compensation}
        if tokens is not None:
            small = tokens(small)
            corrections["tokens"] = {"rule": "merge", **plain(vars(tokens))}
        if cuts or (tokens is not None and any(tokens.pairs)):
            corrections |= self.correct(small, {**plan.ranks, **corrections.get("tokens", {})})
        with self.services.watch("errors"):
            layers = [
                known.entry(cuts.get(known.name), plan.ranks, small)
                for known in track(self.decomposed, "errors", shown=self.services.progress)
            ]
        balance_directions(small)  # the errors above need the basis before this step
        saved = pivot(small) if pivots(self, plan) else {}
        for layer in layers:
            layer["params"] -= saved.get(layer["name"], 0)
        report = make_report(self, plan, small, layers, corrections)
        return small if self.subject.narrow is None else small.to(self.subject.narrow), report

    def correct(self, small: nn.Module, ranks: Mapping[str, Any]) -> dict[str, Any]:
        """Refit the outputs of a model made by ``ranks``, and whatever else, in place; return the report's entry."""
        return correct(self, small, dict(ranks))
