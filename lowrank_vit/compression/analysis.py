"""The analysis of a model, unit by unit, before a size is chosen; any reduction follows from it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.compression import report as reporting
from lowrank_vit.compression.compensate import compensated
from lowrank_vit.compression.measure import measured_by_plan, sensed
from lowrank_vit.compression.plan import plan_within
from lowrank_vit.compression.prices import setting_of
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.resume import Phases
from lowrank_vit.modules.factors import pivot
from lowrank_vit.modules.fold import balance_directions
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.objectives import divergences
from lowrank_vit.records.budgets import Size, budget_of
from lowrank_vit.records.costs import PARAMETERS, Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import FORMAT, Fallback, LayerEntry, Report, overfit_entry, plain
from lowrank_vit.runtime import provenance
from lowrank_vit.runtime.progress import Stopwatch, track
from lowrank_vit.stages.evaluate.speed import Setting
from lowrank_vit.stages.gates.learning import Learnt
from lowrank_vit.units.base import Cut, Decomposed, Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Hold what is known of a model before a size is chosen: statistics, and all directions of all units.

    ``dense``: the model as it was given, ``model``: the same function in the form that units are cut from.
    ``chosen``: whether the user has chosen the sites. ``fallback``: what of the model the recipe could not take.
    ``narrow``: the type of a model of less than 32 bits, in which the smaller one is returned; all before is computed in
    float32 at least. ``batch_size``, ``compiled``: how the smaller model is to run, for a budget in time.
    ``learnt``: what gates have learnt.
    """

    dense: nn.Module
    model: nn.Module
    recipe: Recipe
    units: Sequence[Unit]
    parts: Mapping[str, Mapping[str, Any]]  # by unit, by part
    images: Images
    unseen: Images | None
    moments: Mapping[str, Moments]
    held_out: Mapping[str, Moments] | None
    device: torch.device
    seed: int
    watch: Stopwatch
    progress: bool
    phases: Phases
    chosen: bool = False
    narrow: torch.dtype | None = None
    fallback: Fallback | None = None
    batch_size: int = 8
    compiled: bool = False
    learnt: Learnt | None = None

    @cached_property
    def decomposed(self) -> list[Decomposed]:
        """Return the decomposed units."""
        known = [unit.decomposed(self.model, self.parts[unit.name], self.moments, self.held_out) for unit in self.units]
        caps = sorted({each.cap for each in known if each.cap is not None})
        if caps:
            capped = sum(each.cap is not None for each in known)
            logger.warning(
                "the mean image caps the rank of %d of %d layers at %s (see the report): above it, equation (6) is zero",
                capped,
                len(known),
                caps,
            )
        return known

    @cached_property
    def curves_by_unit(self) -> dict[str, list[ErrorCurve]]:
        """Return the loss and cost of every size of each part, by unit."""
        return {known.unit.name: known.curves() for known in self.decomposed}

    @property
    def curves(self) -> list[ErrorCurve]:
        """Return the loss and cost of every size of each unit."""
        return [curve for curves in self.curves_by_unit.values() for curve in curves]

    @cached_property
    def choices(self) -> list[ErrorCurve]:
        """Return the curves that an allocator chooses from: with measured losses, where the recipe senses them."""
        return self.curves if self.recipe.sense is None else sensed(self, self.recipe.sense)

    @cached_property
    def size(self) -> tuple[int, int | None]:
        """Return the dense model's parameters and multiply-accumulates."""
        return reporting.model_size(self.dense)

    @property
    def dense_cost(self) -> Cost:
        """Return what the whole dense model costs."""
        return Cost(self.size[0], self.size[1] or 0)

    @property
    def setting(self) -> Setting:
        """Return where the smaller model is to run, and how."""
        return setting_of(self.model, self.narrow, self.batch_size, compiled=self.compiled)

    def plan(self, size: Size, cost: str = PARAMETERS) -> RankPlan:
        """Choose every unit's size so that the whole model loses a share of its ``cost``, or keeps within a budget.

        ``size``: the share, or a budget: ``{"macs": 0.5}``, the share that remains, or ``{"bytes": "6MiB"}``.
        Raises ``InputError`` for a size that no choice can reach.
        """
        return plan_within(self, budget_of(size, cost))

    def measure(self, plan: RankPlan, batches: Iterable[Tensor], images: int) -> dict[str, tuple[int, float]]:
        """Measure the loss of every unit at its planned size, with the rest of the model dense.

        A unit that stays dense is measured at its ``probe_rank``. Returns, by unit, the size and the divergence from the
        dense model on the first ``images`` of the batches.
        """
        return measured_by_plan(self, plan, batches, images)

    def compress(self, size: Size, cost: str = PARAMETERS) -> tuple[nn.Module, Report]:
        """Make a compressed copy of the model, and its report (also attached to it as ``compression_report``)."""
        return self.apply(self.plan(size, cost))

    def sketch(self, plan: RankPlan) -> nn.Module:
        """Make a model of a plan's sizes, without Z and refit: as large and as fast as the result."""
        small = copy.deepcopy(self.model)
        for name, cut in self.cuts(plan).items():
            replace_module(small, name, cut.fold())
        if self.recipe.pivoted:
            pivot(small)
        return small

    def apply(self, plan: RankPlan) -> tuple[nn.Module, Report]:
        """Compress by a given plan, as ``compress`` does by its own: a size of every unit, or ``None`` for dense."""
        compressed, cuts = copy.deepcopy(self.model), self.cuts(plan)
        cuts, compensation = compensated(self, cuts, self.phases.of(dict(plan.ranks)))
        with self.watch("fold"):
            for name, cut in cuts.items():
                replace_module(compressed, name, cut.fold())
        refit = self._refit(compressed, dict(plan.ranks)) if cuts else {}
        with self.watch("errors"):
            layers = [
                known.entry(cuts.get(known.unit.name), plan.ranks, compressed)
                for known in track(self.decomposed, "errors", shown=self.progress)
            ]
        balance_directions(compressed)  # the errors above need the basis before this step
        saved = pivot(compressed) if self.recipe.pivoted else {}
        for layer in layers:
            layer["params"] -= saved.get(layer["name"], 0)
        report = self._report(compressed, plan, layers, compensation, refit)
        return compressed if self.narrow is None else compressed.to(self.narrow), report

    def cuts(self, plan: RankPlan) -> dict[str, Cut]:
        """Cut the units that a plan makes smaller, by name."""
        cuts = {}
        for known in self.decomposed:
            ranks = {curve.name: plan.ranks[curve.name] for curve in self.curves_by_unit[known.unit.name]}
            if any(rank is not None for rank in ranks.values()):
                with self.watch("fold"):
                    cuts[known.unit.name] = known.cut(ranks)
        return cuts

    def _refit(self, compressed: nn.Module, ranks: Mapping[str, int | None]) -> dict[str, Any]:
        """Refit the outputs branch by branch; return the ridges, and the divergence on unseen images."""
        method = self.recipe.refit
        if method is None:
            return {}
        entry: dict[str, Any] = {}
        before = None if self.unseen is None else copy.deepcopy(compressed)
        outputs = {unit.linears[-1].name: self.moments[unit.linears[-1].name] for unit in self.units}
        sensitivities = {
            name: moments.sums["sensitive_tokens"]
            for name, moments in outputs.items()
            if moments.has("sensitive_tokens")
        }

        def refit() -> dict[str, Any]:
            ridges = method(self.model, compressed, sensitivities, self.images.each(), progress=self.progress)
            return {"ridges": ridges, "weights": compressed.state_dict()}

        with self.watch("refit"):
            fitted = self.phases.of(ranks)("refit", refit)
        compressed.load_state_dict(fitted["weights"])
        entry["ridges"] = fitted["ridges"]
        if self.unseen is not None and before is not None:
            with self.watch("divergence"):
                models, unseen = (before, compressed), self.unseen.each()
                pair = divergences(self.recipe.objective, self.model, models, unseen, progress=self.progress)
            name = f"{self.recipe.objective.measures}_held_out"
            entry[f"{name}_before"], entry[name] = pair
        return {"refit": entry}

    def _dense_logits(self) -> dict[str, str]:
        """Return why queries and keys stay dense, by the name of their module."""
        sites = {unit.name: unit.site for unit in self.units}
        reasons = {name: getattr(site, "dense_logits", "") for name, site in sites.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _report(
        self,
        compressed: nn.Module,
        plan: RankPlan,
        layers: list[LayerEntry],
        compensation: dict[str, Any] | None,
        refit: dict[str, Any],
    ) -> Report:
        """Make the report and attach it to the model."""
        params, macs = reporting.size_entries(self.dense, compressed, self.size)
        report: Report = {
            "format": FORMAT,
            "model": reporting.architecture(self.model),
            "recipe": self.recipe.name,
            "recipe_fields": self.recipe.record(),
            "protocol": "training-free" if self.learnt is None else self.learnt.protocol,
            "params": params,
            "macs": macs,
            "weights_bytes": reporting.weights_entry(self.dense, compressed, self.setting.dtype),
            **({} if plan.budget is None else {"budget": plan.budget}),  # type: ignore[typeddict-item]
            "layers": layers,
            "overfit": overfit_entry(layers),
            "left_dense": reporting.left_dense_entry(
                self.model, [unit.name for unit in self.units], self._dense_logits(), chosen=self.chosen
            ),
            "methods": {type(method).__name__: plain(vars(method)) for method in self.recipe.methods},
            "measured_losses": list(plan.measured),
            "compensation": compensation,
            **reporting.carried(self.model),  # type: ignore[typeddict-item]
            **({} if self.fallback is None else {"fallback": self.fallback}),
            **({} if self.learnt is None else {"learnt": self.learnt.described}),
            **refit,  # the entry, or nothing
            "trajectory": list(plan.trajectory),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.watch.seconds.items()},
            "peak_memory_bytes": provenance.peak_memory(self.device),
            "provenance": provenance.record(self.device, self.seed, self.images.record),
        }
        compressed.compression_report = report  # type: ignore[assignment]  # plain data, so that save() finds it
        return report
