"""The pipeline for whole halves of blocks: attention by head, MLP by interpolation, one budget for all of them.

Calibrate, decompose, allocate, fold, as in ``pipeline``; what is chosen is not a rank for a matrix but how many
directions of queries and keys, of values, and how many hidden units each block keeps. All their losses are in nats for
an image, so one knapsack decides over the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import report
from lowrank_vit.allocate import ALLOCATORS
from lowrank_vit.analysis import BaseAnalysis
from lowrank_vit.attention import LowRankAttention
from lowrank_vit.decompose.interpolate import refitted
from lowrank_vit.half_steps import decompose_halves, methods_of, needs_of, part_curves
from lowrank_vit.halves import dense_linear, find_halves, fold_attention, fold_mlp
from lowrank_vit.measured import IMAGES, Replay, corrected
from lowrank_vit.parts import (
    QUERY_KEY,
    Directions,
    HalfSite,
    Kept,
    Logits,
    MlpSite,
    Part,
    last_part,
    part_name,
)
from lowrank_vit.phases import Phases, identity
from lowrank_vit.progress import Stopwatch, track
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import LayerReport, Moments, RankPlan
from lowrank_vit.refit import OutputRefit, check_refit
from lowrank_vit.sites import replace_module
from lowrank_vit.steps import Images, budget_within, collect


def block_budget(model: nn.Module, recipe: Recipe, reduction: float) -> int:
    """The parameters that are left for all halves. Raises ``InputError`` before any image is seen if it is too few."""
    sites = find_halves(model)
    unknown = {
        part_name(site, part): Directions(torch.arange(costs.count), torch.zeros(costs.count + 1))
        for site in sites
        for part, costs in site.parts.items()
    }
    return budget_within(model, recipe, part_curves(sites, unknown, recipe.rank_multiple), reduction)


@dataclass(frozen=True, kw_only=True)
class BlockAnalysis(BaseAnalysis):
    """All that is known of a model before a size is chosen: statistics, and all directions of all halves."""

    sites: Sequence[HalfSite]
    unseen: Images | None
    parts: Mapping[str, Part | Logits]

    def plan(self, reduction: float) -> RankPlan:
        """How much of every part is kept when the whole model has lost ``reduction`` of its parameters.

        Raises ``InputError`` for a reduction that no choice can reach.
        """
        budget = budget_within(self.model, self.recipe, self.curves, reduction)
        allocate = ALLOCATORS.get(self.recipe.allocator)()
        with self.watch("allocate"):
            plan = allocate(self.curves, budget)
        points: dict[str, list[tuple[int, float]]] = {curve.name: [] for curve in self.curves}
        for _ in range(self.recipe.measured):
            with self.watch("measure"):
                found = self.phases.of(dict(plan.ranks))("measure", partial(self.measure, plan, self.images.each()))
                for name, point in found.items():
                    points[name].append(point)
            curves = [corrected(curve, points[curve.name]) for curve in self.curves]
            with self.watch("allocate"):
                plan = allocate(curves, budget)
        steps: list[dict[str, float | int | str]] = [
            {"part": curve.name, "kept": count, "predicted_loss": curve.error(count), "measured_loss": loss}
            for curve in self.curves
            for count, loss in points[curve.name]
        ]
        return replace(plan, measured=tuple(steps))

    def measure(self, plan: RankPlan, batches: Iterable[Tensor], images: int = IMAGES) -> dict[str, tuple[int, float]]:
        """What every part really costs at its count, the rest of the model dense; at half of it where it stays dense.

        By part: the count, and the divergence from the dense model in nats on the first ``images`` of the batches.
        """
        replay, points = Replay(self.model, batches, images), {}
        for site in track(self.sites, "measure", shown=self.progress):
            for part, costs in site.parts.items():
                name = part_name(site, part)
                own, count = self.parts[name].units, plan.ranks[name]
                count = costs.count // 2 // own.multiple * own.multiple if count is None else count
                small, _ = self._small(site, {each: count if each == part else None for each in site.parts})
                points[name] = count, replay.divergence(site.name, small)
        return points

    def compress(self, reduction: float) -> tuple[nn.Module, dict[str, Any]]:
        """A compressed copy of the model, and its report (attached to it as ``compression_report``, too)."""
        return self.apply(self.plan(reduction))

    def apply(self, plan: RankPlan) -> tuple[nn.Module, dict[str, Any]]:
        """What ``compress`` returns, for a plan of one's own: a count, or ``None`` for dense, for every part."""
        compressed, kept = copy.deepcopy(self.model), {}
        with self.watch("fold"):
            for site in self.sites:
                counts = {part: plan.ranks[part_name(site, part)] for part in site.parts}
                if any(count is not None for count in counts.values()):
                    small, kept[site.name] = self._small(site, counts)
                    replace_module(compressed, site.name, small)
        refit = self._refit(compressed, dict(plan.ranks)) if self.recipe.refit and kept else {}
        methods = [*methods_of(self.recipe), *([OutputRefit()] if self.recipe.refit else [])]
        layers = [self._entry(site, compressed, plan, kept.get(site.name)) for site in self.sites]
        for module in compressed.modules():  # the errors above are in the basis before this
            if isinstance(module, LowRankAttention):
                module.balance()
        return compressed, self._finish(
            compressed,
            plan,
            layers,
            methods={type(method).__name__: report.plain(vars(method)) for method in methods},
            measured_losses=list(plan.measured),
            compensation=None,
            **refit,
        )

    def _small(self, site: HalfSite, counts: Mapping[str, int | None]) -> tuple[nn.Module, Kept]:
        """The smaller module, and what of the output layer's inputs it keeps."""
        last = last_part(site)
        part = self.parts[part_name(site, last)]
        assert isinstance(part, Part)
        chosen = part.units.kept(counts[last])
        rows, approximation = refitted(part, chosen)
        weight, bias = dense_linear(self.model, site.linears[-1])
        bias = bias + part.mean @ (weight - approximation)
        if isinstance(site, MlpSite):
            kept = Kept(torch.eye(len(weight)).to(weight)[:, chosen], weight.new_zeros(len(weight)))
            return fold_mlp(self.model, site, chosen, rows, bias), kept
        logits = self.parts[part_name(site, QUERY_KEY)]
        assert isinstance(logits, Logits)
        assert part.basis is not None
        kept = Kept(torch.block_diag(*part.basis)[:, chosen], dense_linear(self.model, site.qkv)[1][-len(weight) :])
        directions, pair = logits.units.kept(counts[QUERY_KEY]), (logits.query, logits.key)
        return fold_attention(self.model, site, pair, directions, part.basis, chosen, rows, bias), kept

    def _refit(self, compressed: nn.Module, counts: Mapping[str, int | None]) -> dict[str, Any]:
        """Refit the outputs under the smaller prefix; the ridges, and the divergence on held-out images before and after."""
        found: dict[str, Any] = {}
        before = None if self.unseen is None else copy.deepcopy(compressed)
        positions = {site.linears[-1].name: self.moments[site.linears[-1].name] for site in self.sites}
        sensitivities = {name: own.sums["sensitive_tokens"] for name, own in positions.items()}

        def refit() -> dict[str, Any]:
            ridges = OutputRefit()(self.model, compressed, sensitivities, self.images.each(), progress=self.progress)
            return {"ridges": ridges, "weights": compressed.state_dict()}

        with self.watch("refit"):
            kept = self.phases.of(counts)("refit", refit)
        compressed.load_state_dict(kept["weights"])
        found["ridges"] = kept["ridges"]
        if self.unseen is not None and before is not None:
            with self.watch("divergence"):
                pair = report.divergences(self.model, (before, compressed), self.unseen.each())
            found["kl_held_out_before"], found["kl_held_out"] = pair
        return {"refit": found}

    def _entry(self, site: HalfSite, compressed: nn.Module, plan: RankPlan, kept: Kept | None) -> LayerReport:
        """What became of a half."""
        details: dict[str, float | int | None] = {}
        for part, costs in site.parts.items():
            own, count = self.parts[part_name(site, part)], plan.ranks[part_name(site, part)]
            details[part] = costs.count if count is None else count
            details[f"{part}_of"] = costs.count
            details[f"{part}_predicted_loss"] = 0.0 if count is None else float(own.units.loss[count])
            if isinstance(own, Part):
                details["ridge"] = own.ridge
        rank = None if kept is None else plan.ranks[part_name(site, last_part(site))]
        moments = [None if own is None else own[site.linears[-1].name] for own in (self.moments, self.held_out)]
        return report.half_report(site, self.model, compressed, kept, moments, rank, details)


def analyse_blocks(
    model: nn.Module,
    seen: Images,
    recipe: Recipe,
    unseen: Images | None,
    moments: Mapping[str, Moments] | None,
    device: torch.device,
    seed: int,
    watch: Stopwatch,
    progress: bool,
    checkpoint_dir: Path | None,
) -> BlockAnalysis:
    """What ``pipeline.analyse`` does, for whole halves. The model is taken as it is, and not changed."""
    sites = find_halves(model)
    if recipe.refit or recipe.measured:
        check_refit(model, seen.batches)
    linears = [linear for site in sites for linear in site.linears]
    with watch("calibrate"):
        moments = moments or collect(model, linears, needs_of(recipe, sites), seen, seed, progress, recipe.probe)
    unseen_moments = None
    if unseen is not None:
        outputs = [site.linears[-1] for site in sites]
        with watch("held_out"):
            unseen_moments = collect(model, outputs, frozenset({"input_second"}), unseen, seed, progress)
    key = identity(model, moments, asdict(recipe), seed) if checkpoint_dir else ""
    phases = Phases(checkpoint_dir, key, device)
    with watch("decompose"):
        parts = phases("decompose", lambda: decompose_halves(model, recipe, sites, moments, progress))
    curves = part_curves(sites, {name: part.units for name, part in parts.items()}, recipe.rank_multiple)
    return BlockAnalysis(
        model=model,
        recipe=recipe,
        sites=sites,
        images=seen,
        unseen=unseen,
        moments=moments,
        held_out=unseen_moments,
        parts=parts,
        curves=curves,
        device=device,
        seed=seed,
        watch=watch,
        progress=progress,
        phases=phases,
    )
