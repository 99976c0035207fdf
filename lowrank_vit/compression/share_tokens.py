"""Fewer tokens and smaller layers under one budget of multiply-accumulates or time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lowrank_vit.compression.analysis import Analysis
from lowrank_vit.compression.arguments import check_model, check_options
from lowrank_vit.compression.compress import analyse
from lowrank_vit.compression.fewer_tokens import fewer_tokens
from lowrank_vit.compression.plan import Planner
from lowrank_vit.compression.prices import Price, price_of
from lowrank_vit.compression.prices.fewer_tokens import FewerTokens
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.report import dense_report
from lowrank_vit.objectives import divergences
from lowrank_vit.records.budgets import LATENCY, Budget, Size, budget_of
from lowrank_vit.records.images import Batches, Images
from lowrank_vit.records.report import Report
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.tokens import TOKENS

PARTS = (0.25, 0.5, 0.75, 1.0)  # of the logarithm of the share that is left, which tokens save
TOME = "tome"


def check_shared(model: nn.Module, size: Size, rule: str = TOME) -> None:
    """Raise ``InputError``, before an image is seen, unless tokens and sizes can be chosen together."""
    cost = budget_of(size).cost
    if cost not in ("macs", LATENCY):
        raise InputError(f"fewer tokens save no {cost}: give a budget such as macs=0.6 or latency=0.6")
    fewer_tokens(model, rule, macs=1.0)  # refuses what must keep its tokens, or does not say the size of its images


def compress_with_fewer_tokens(
    model: nn.Module,
    calibration: Batches | Images,
    budget: Mapping[str, float | str] | str | Budget,
    recipe: str | Recipe = "best",
    *,
    held_out: Batches | Images,
    rule: str = TOME,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """Make the most accurate model of a budget of multiply-accumulates or time: fewer tokens, smaller layers, or both.

    Tokens take a part of the saving, from nothing to all of it, and layers the rest; the split that changes the outputs
    least on the ``held_out`` images is returned, which so cannot evaluate it. ``rule``: of ``fewer_tokens``; calibration and
    options: those of ``analyse``. Raises ``InputError`` with one line for anything that cannot be done.
    """
    check_options(options, compress_with_fewer_tokens, analyse)
    check_model(model, calibration)
    check_shared(model, budget, rule)
    return shared(analyse(model, calibration, recipe, held_out=held_out, **options), budget, rule)


def shared(analysis: Analysis, size: Size, rule: str = TOME) -> tuple[nn.Module, Report]:
    """Share a budget between fewer tokens and smaller layers; return the split that is best on unseen images.

    The report's ``shared`` lists all that were tried. Raises ``InputError`` for an analysis without unseen images, and for
    a budget that no split meets.
    """
    check_shared(analysis.model, size, rule)
    if analysis.unseen is None:
        raise InputError("tokens and sizes are chosen on unseen images: give some (--held-out-samples)")
    best, least, tried = None, float("inf"), []
    for small in Splits(analysis, budget_of(size), rule).models():
        with analysis.services.watch("divergence"):
            unseen = analysis.unseen.each()
            [divergence] = divergences(
                analysis.recipe.objective, analysis.model, [small], unseen, progress=analysis.services.progress
            )
        report = small.compression_report
        tokens = {name: value for name, value in report.get("tokens", {}).items() if name != "rule"}
        tried.append({**tokens, "parameters": report["params"]["compressed"], "divergence": divergence})
        if best is None or divergence < least:
            best, least = small, divergence
    assert best is not None
    chosen: Report = best.compression_report
    best.compression_report = {**chosen, "shared": {"rule": rule, "tried": tried}}
    return best, best.compression_report


@dataclass(frozen=True)
class Splits:
    """Split a budget between a token rule and the sizes of an analysis, in several ways."""

    analysis: Analysis
    budget: Budget
    rule: str

    @cached_property
    def price(self) -> Price:
        """Return the budget's cost with all tokens."""
        return price_of(self.budget.cost, self.analysis.dense, self.analysis.setting, self.analysis.model)

    @cached_property
    def limit(self) -> float:
        """Return the most that the model may cost."""
        return self.budget.limit(self.price.dense)

    def models(self) -> Iterator[Any]:
        """Make the model of every split that meets the budget. Raises ``InputError`` where none does."""
        refused, made = list[InputError](), 0
        for fewer in (None, *self._dense_ones()):
            try:
                small = self.analysis.compress(self.budget)[0] if fewer is None else self._cut(fewer)
            except InputError as error:  # no size is small enough for so many tokens
                refused.append(error)
                continue
            made += 1
            yield small
        if not made:
            raise InputError(f"{refused[0]}, and fewer tokens ({self.rule}) do not reach it either")

    def _dense_ones(self) -> Iterator[Any]:
        """Make the dense model with fewer tokens, at every strength that is tried."""
        dense = self.analysis.dense
        report: Any = dense_report(dense)
        left = report["macs"]["compressed"]
        for part in PARTS:
            try:
                fewer: Any = fewer_tokens(dense, self.rule, macs=(self.limit / self.price.dense) ** part)
            except InputError:  # so few tokens there cannot be
                return
            if fewer.compression_report["macs"]["compressed"] < left:
                left = fewer.compression_report["macs"]["compressed"]
                yield fewer

    def _cut(self, fewer: Any) -> Any:
        """Make layers smaller until a model with fewer tokens meets the budget."""
        analysis = self.analysis
        options = {name: value for name, value in fewer.compression_report["tokens"].items() if name != "rule"}
        price = FewerTokens.of(self.price, TOKENS.get(self.rule)(**options))
        if price.uncut <= self.limit:
            return fewer if analysis.subject.narrow is None else fewer.to(analysis.subject.narrow)
        curves = price.priced(analysis.priced_losses, analysis.decomposed)
        small, _ = analysis.apply(Planner(analysis, self.budget, price, curves, analysis.measure).plan())
        return fewer_tokens(small, self.rule, **options)
