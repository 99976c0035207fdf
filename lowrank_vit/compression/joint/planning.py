"""Sizes and bits of a whole model under one budget of bytes: one knapsack over all that can be chosen."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from lowrank_vit.compression.joint.forms import HALF, HALF_BYTES, Form, as_it_is, cut_form, linears, outside_blocks
from lowrank_vit.compression.joint.fronts import PAGE, Choice, Front, Losses, front
from lowrank_vit.compression.joint.rounding import rounding_losses
from lowrank_vit.compression.resume import ResumeStore, identity
from lowrank_vit.modules.counting import parameter_count, saved_bytes
from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.budgets import Budget
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.images import Images
from lowrank_vit.records.report import BudgetEntry
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.stages.allocate import least_cost, total_cost
from lowrank_vit.stages.allocate.rules import Knapsack
from lowrank_vit.stages.correct.measured_losses import MeasuredLosses
from lowrank_vit.stages.quantize import Quantizer
from lowrank_vit.units.embeddings import PatchUnit

if TYPE_CHECKING:
    from lowrank_vit.compression.analysis import Analysis


T = TypeVar("T")
POINTS = 32  # sizes of each unit that are offered
CLOSE = 1 / 500  # of the budget may be left
IMAGES = 32  # on which the rounding of a layer is measured
ROUNDS = 8  # in which the plan is brought close to the budget by the size of the file


@dataclass(frozen=True)
class JointPlan:
    """Hold the sizes of all units, and the bits of the layers of the model made of them."""

    sizes: RankPlan
    bits: Mapping[str, int]


@dataclass(frozen=True)
class JointPlanner:
    """Choose sizes and bits from an analysis, the numbers of bits allowed, and how weights will be rounded.

    ``dense``: bits alone are chosen, and every module keeps its size.
    """

    analysis: "Analysis"
    bits: Sequence[int]
    quantizer: Quantizer
    dense: bool = False

    @cached_property
    def whole(self) -> nn.Module:
        """Return the model in the forms that are cut, with all units at their largest size: the same function."""
        model = copy.deepcopy(self.analysis.model)
        for decomposed in self.analysis.decomposed:
            form = self.forms[decomposed.name][-1]
            if form.whole and form.sizes:
                sizes = {unit: each[-1] for unit, each in form.sizes.items()}
                replace_module(model, decomposed.name, decomposed.cut(sizes).fold())
        PatchUnit.prepare(model)
        return model

    @cached_property
    def forms(self) -> dict[str, list[Form]]:
        """Return the forms of every unit's module: as it is, unless a whole cut one does as well, and cut."""
        found = {}
        for decomposed in self.analysis.decomposed:
            name, dense = decomposed.name, self.analysis.model.get_submodule(decomposed.name)
            cut = None if self.dense else cut_form(decomposed, self.analysis.curves_by_unit[name], dense, POINTS)
            found[name] = [] if cut is not None and cut.whole else [as_it_is(name, dense)]
            found[name] += [] if cut is None else [cut]
        return found

    @cached_property
    def outside(self) -> list[str]:
        """Return the layers outside all units that are rounded, too: the patch embedding's and the classifier."""
        inside = tuple(f"{unit}." for unit in self.forms)
        return [name for name in outside_blocks(self.whole) if not name.startswith(inside)]

    @cached_property
    def losses(self) -> Losses:
        analysis, whole = self.analysis, self.whole
        inside = [layer.name for forms in self.forms.values() for form in forms for layer in form.layers if form.whole]

        def measure() -> Losses:
            return rounding_losses(
                whole,
                inside,
                self.outside,
                analysis.images,
                self.judges,
                self.bits,
                objective=analysis.recipe.objective,
                quantizer=self.quantizer,
                measured=IMAGES,
                progress=analysis.services.progress,
            )

        with analysis.services.watch("round"):
            found = dict(self._kept("rounding", measure))
        found = {name: {**losses, HALF: 0.0} for name, losses in found.items()}
        for forms in self.forms.values():
            dense = [found[layer.name] for layer in forms[0].layers]
            for layer in (layer for form in forms if not form.whole for layer in form.layers):
                # each factor, rounded, disturbs the output as the rounded dense weight does
                found[layer.name] = {bits: fmean(losses[bits] for losses in dense) for bits in (*self.bits, HALF)}
        return found

    def _kept(self, name: str, compute: Callable[[], T]) -> T:
        """Compute what does not depend on the budget, or find it in the cache if the images have a name."""
        analysis = self.analysis
        names = [analysis.images.fingerprint, self.judges.fingerprint]
        if None in names:
            return compute()
        key = identity(self.whole, analysis.moments, *names)
        store = ResumeStore(cache_folder() / "rounding", key, analysis.services.device)
        plain = [list(self.bits), repr(self.quantizer), repr(analysis.recipe.objective), IMAGES]
        return store.keyed_by(*plain)(name, compute)

    @property
    def measured(self) -> MeasuredLosses:
        """Return how sizes' losses are measured: as in the recipe, but trusted fully, as those of rounding are."""
        return replace(self.analysis.recipe.measured or MeasuredLosses(), trust=1.0)

    @property
    def judges(self) -> Images:
        """Return the images on which losses are measured: unseen ones, as cuts are fitted to those that were seen."""
        return self.analysis.unseen or self.analysis.images

    def fronts(self, curves: Mapping[str, Sequence[ErrorCurve]]) -> dict[str, Front]:
        """Return all choices; ``curves``: of the units, by unit."""
        found = {}
        for name, forms in self.forms.items():
            dense = HALF_BYTES * parameter_count(self.analysis.model.get_submodule(name))
            found[name] = front(name, forms, curves[name], self.losses, dense)
        for name in self.outside:
            layer = self.whole.get_submodule(name)
            form = as_it_is(name, layer)
            found[name] = front(name, [form], [], self.losses, HALF_BYTES * parameter_count(layer))
        return found

    def plan(self, budget: Budget) -> JointPlan:
        """Choose sizes and bits of least loss. Raises ``InputError`` for a budget that none meets, or that float16 meets."""
        analysis, limit = self.analysis, budget.limit(saved_bytes(self.analysis.dense, torch.float32))
        curves: Mapping[str, Sequence[ErrorCurve]] = analysis.curves_by_unit
        plan, counted = self._within(self.fronts(curves), limit, budget)
        steps: list[dict[str, float | int | str]] = []
        points: dict[str, tuple[int, float]] = {}
        for _ in range(0 if self.dense else self.measured.rounds):
            with analysis.services.watch("measure"):
                points = analysis.measure(self._probed(plan), self.judges.each(), self.measured.images)
            curves = {
                name: [self.measured(curve, [points[curve.name]]) for curve in own]
                for name, own in analysis.curves_by_unit.items()
            }
            plan, counted = self._within(self.fronts(curves), limit, budget)
        for curve in (curve for curve in analysis.curves if curve.name in points):
            kept, loss = points[curve.name]
            step = {"part": curve.name, "kept": kept, "predicted_loss": curve.error(kept), "measured_loss": loss}
            steps.append(step)  # type: ignore[arg-type]
        dense = saved_bytes(analysis.dense, torch.float32)
        entry: BudgetEntry = {
            "cost": budget.cost,
            "asked": str(budget),
            "dense": dense,
            "limit": int(limit),
            "predicted": counted,
            "counted": counted,
            "where": {},
        }
        sizes = replace(plan.sizes, measured=tuple(steps), budget=entry, pivoted=False)
        return replace(plan, sizes=sizes)

    def _probed(self, plan: JointPlan) -> RankPlan:
        """Return the sizes to measure; a unit that is left whole is measured at its ``probe_rank``."""
        full = {
            curve.name: curve.full_rank or len(curve.errors) - 1
            for curves in self.analysis.curves_by_unit.values()
            for curve in curves
        }
        return RankPlan({name: None if size == full[name] else size for name, size in plan.sizes.ranks.items()})

    def _within(self, fronts: Mapping[str, Front], limit: float, budget: Budget) -> tuple[JointPlan, int]:
        """Spend the budget, including the difference between the file's size and its prices."""
        curves = [each.curve for each in fronts.values()]
        everything = saved_bytes(self.whole, torch.float16)
        rest = everything - PAGE * sum(curve.dense_cost for curve in curves)
        pages, best = int((limit - rest) // PAGE), None
        low, high = least_cost(curves) - 1, sum(curve.dense_cost for curve in curves)
        if limit >= everything:
            raise InputError(f"budget {budget} is out of reach: the model in float16 has {everything:,} bytes already")
        for _ in range(ROUNDS):
            if not low < pages < high:
                pages = (low + high) // 2
            if pages <= low:
                break
            ranks = Knapsack()(curves, pages)
            plan, spent = self._chosen(fronts, ranks), total_cost(curves, ranks.ranks)
            counted = self.count(plan)
            if counted <= limit and (best is None or counted > best[1]):
                best = plan, counted
            if 0 <= limit - counted <= CLOSE * limit:
                break
            low, high = (pages, high) if counted <= limit else (low, min(spent, pages))  # less would buy the same plan
            pages = spent + int((limit - counted) // PAGE)
        if best is None:
            least = rest + PAGE * least_cost(curves)
            raise InputError(
                f"budget {budget} is out of reach: the smallest model at these bits has about {least:,} bytes"
            )
        return best

    def _chosen(self, fronts: Mapping[str, Front], ranks: RankPlan) -> JointPlan:
        sizes: dict[str, int | None] = {curve.name: None for curve in self.analysis.curves}
        bits: dict[str, int] = {}
        for name, each in fronts.items():
            units = [curve.name for curve in self.analysis.curves_by_unit.get(name, [])]
            choice: Choice = each.chosen(ranks.ranks[name], units)
            sizes |= choice.sizes
            bits |= choice.bits
        return JointPlan(RankPlan(sizes), bits)

    def count(self, plan: JointPlan) -> int:
        """Count the bytes of the file of a plan's model, without rounding a weight."""
        small = self.analysis.resized(replace(plan.sizes, pivoted=False))
        PatchUnit.prepare(small)
        for name, layer in linears(small).items():
            if name in plan.bits:
                bias = layer.bias is not None
                empty = QuantizedLinear(layer.in_features, layer.out_features, plan.bits[name], bias)
                replace_module(small, name, empty)
        return saved_bytes(small, torch.float16)
