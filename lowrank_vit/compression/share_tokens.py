"""Fewer tokens and smaller layers under one budget of multiply-accumulates or time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.budget import priced
from lowrank_vit.compression.plan import Planner
from lowrank_vit.compression.prices import Price, price_of
from lowrank_vit.compression.prices.fewer_tokens import FewerTokens
from lowrank_vit.compression.token_plan import TokenPlanner
from lowrank_vit.objectives import divergences
from lowrank_vit.records.budgets import Budget, Size, budget_of
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens.merging import PlannedMerging

PARTS = (1.0, 0.75, 0.5)  # of the logarithm of the share that is left, which tokens save
NONE = PlannedMerging()


def shared(analysis: Analysis, size: Size) -> tuple[nn.Module, Report]:
    """Share a budget between fewer tokens and smaller layers; return the split that changes the outputs least.

    That is judged on the unseen images or, without any, on those of the calibration. From all of the saving by tokens on,
    they save less and less, until the outputs change more. The report's ``shared`` lists all that were tried.
    Raises ``InputError`` for a budget that no split meets.
    """
    judges = analysis.images if analysis.unseen is None else analysis.unseen
    best, least, tried = None, float("inf"), []
    for small in Splits(analysis, budget_of(size)).models():
        with analysis.services.watch("divergence"):
            [divergence] = divergences(
                analysis.recipe.objective, analysis.model, [small], judges.each(), progress=analysis.services.progress
            )
        report = small.compression_report
        split = {"pairs": report["tokens"]["pairs"], "parameters": report["params"]["compressed"]}
        tried.append({**split, "divergence": divergence})
        if best is not None and divergence >= least:
            break
        best, least = small, divergence
    assert best is not None
    chosen: Report = best.compression_report
    best.compression_report = {**chosen, "shared": {"tried": tried}}
    return best.to(analysis.subject.home), best.compression_report


@dataclass(frozen=True)
class Splits:
    """Split a budget between the tokens and the sizes of an analysis, in several ways."""

    analysis: Analysis
    budget: Budget

    @cached_property
    def price(self) -> Price:
        return price_of(self.budget.cost, self.analysis.dense, self.analysis.setting, self.analysis.model)

    @cached_property
    def limit(self) -> float:
        return self.budget.limit(self.price.dense)

    def models(self) -> Iterator[Any]:
        """Make the model of every split that meets the budget. Raises ``InputError`` where none does."""
        refused, made = list[InputError](), 0
        if self.limit >= self.price.dense:
            raise InputError(f"budget {self.budget} is out of reach: the dense model keeps within it")
        for rule in self._rules():
            try:
                small = self.analysis.apply(self._plan(rule), rule)[0]
            except InputError as error:  # no size is small enough for so many tokens
                refused.append(error)
                continue
            made += 1
            yield small
        if not made:
            raise refused[0]

    def _rules(self) -> Iterator[PlannedMerging]:
        """Yield the rules that save all of the budget, parts of it, and nothing but what the head does not read."""
        planner, seen = TokenPlanner(self.analysis), set[PlannedMerging]()
        whole = self.analysis.subject.cost.macs
        for part in PARTS:
            try:
                rule = planner.rule(whole * (self.limit / self.price.dense) ** part)
            except InputError:  # so few tokens there cannot be
                continue
            if rule not in seen:
                seen.add(rule)
                yield rule
        if NONE not in seen:
            yield NONE

    def _plan(self, rule: PlannedMerging) -> RankPlan:
        """Choose the sizes that meet the budget with a rule's tokens; all stay dense where the tokens save enough."""
        analysis, price = self.analysis, FewerTokens.of(self.price, rule)
        if price.uncut <= self.limit:
            entry: Any = {
                "cost": self.budget.cost,
                "asked": str(self.budget),
                "dense": price.dense,
                "limit": int(self.limit),
                "predicted": price.uncut,
                "counted": price.uncut,
                "where": price.where,
            }
            return RankPlan({curve.name: None for curve in analysis.curves}, budget=entry, pivoted=False)
        curves = priced(analysis.recipe, price, analysis.priced_losses, analysis.decomposed)
        return Planner(analysis, self.budget, price, curves, analysis.measure).plan()
