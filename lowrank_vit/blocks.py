"""The pipeline for whole halves of blocks: attention by head, MLP by interpolation, one budget for all of them.

Calibrate, decompose, allocate, fold, as in ``pipeline``; what is chosen is not a rank for a matrix but how many
directions of queries and keys, of values, and how many hidden units each block keeps. All their losses are in nats for
an image, so one knapsack decides over the whole model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit import provenance, report
from lowrank_vit.allocate import ALLOCATORS
from lowrank_vit.decompose import HALVES
from lowrank_vit.decompose.interpolate import refitted
from lowrank_vit.errors import InputError
from lowrank_vit.halves import HalfSite, dense_output, find_halves, fold_attention, fold_mlp
from lowrank_vit.metric import output_metric
from lowrank_vit.parts import AttentionSite, Directions, Logits, Part
from lowrank_vit.progress import Stopwatch, track
from lowrank_vit.recipes import Recipe
from lowrank_vit.records import ErrorCurve, LayerReport, Moments, RankPlan
from lowrank_vit.sites import replace_module
from lowrank_vit.steps import Images, budget_within, collect

LOGITS, VALUES, UNITS = ".query_key", ".value", ".hidden"  # the parts of a half, as a plan names them


def needs_of(recipe: Recipe, sites: list[HalfSite]) -> dict[str, frozenset[str]]:
    """The statistics of every linear layer that they are collected at."""
    assert recipe.attention is not None
    assert recipe.mlp is not None
    needs: dict[str, frozenset[str]] = {}
    for site in sites:
        method = HALVES.get(recipe.attention) if isinstance(site, AttentionSite) else HALVES.get(recipe.mlp)
        needs |= {linear.name: own for linear, own in zip(site.linears, method.needs, strict=True)}
    return needs


def decompose_halves(
    model: nn.Module, recipe: Recipe, sites: list[HalfSite], moments: Mapping[str, Moments], progress: bool
) -> dict[str, Part | Logits]:
    """All parts of all halves. Raises ``InputError`` that names the half whose statistics cannot be used."""
    assert recipe.attention is not None
    assert recipe.mlp is not None
    attention, mlp = HALVES.get(recipe.attention)(), HALVES.get(recipe.mlp)()
    parts: dict[str, Part | Logits] = {}
    for site in track(sites, "decompose", shown=progress):
        output = site.proj if isinstance(site, AttentionSite) else site.fc2
        weight, own = dense_output(model, output)[0], moments[output.name]
        try:
            if isinstance(site, AttentionSite):
                parts[site.name + LOGITS] = attention.logits(
                    site, *dense_output(model, site.qkv), moments[site.qkv.name]
                )
                parts[site.name + VALUES] = attention.values(site, weight, own)
            else:
                parts[site.name + UNITS] = mlp(site, weight, own)
        except (torch.linalg.LinAlgError, ValueError) as error:
            raise InputError(f"{site.name!r} cannot be decomposed: {error}") from error
    return parts


def part_curves(parts: Mapping[str, Part | Logits], multiple: int) -> list[ErrorCurve]:
    """What the allocator chooses from: one curve for every part."""
    return [part.units.curve(name, multiple) for name, part in parts.items()]


def block_budget(model: nn.Module, recipe: Recipe, reduction: float) -> int:
    """The parameters that are left for all halves. Raises ``InputError`` before any image is seen if it is too few."""
    curves = []
    for site in find_halves(model):
        attention = isinstance(site, AttentionSite)
        size = site.proj.in_features if attention else site.fc1.out_features
        for costs in (site.logits, site.values) if attention else (site.units,):
            units = Directions(torch.arange(size), torch.zeros(size + 1), costs)
            curves.append(units.curve(f"{site.name} {len(curves)}", recipe.rank_multiple))
    return budget_within(model, recipe, curves, reduction)


@dataclass(frozen=True)
class BlockAnalysis:
    """All that is known of a model before a size is chosen: statistics, and all directions of all halves."""

    model: nn.Module
    recipe: Recipe
    sites: list[HalfSite]
    images: Images
    moments: Mapping[str, Moments]
    held_out: Mapping[str, Moments] | None
    parts: Mapping[str, Part | Logits]
    curves: list[ErrorCurve]
    device: torch.device
    seed: int
    watch: Stopwatch

    def plan(self, reduction: float) -> RankPlan:
        """How much of every part is kept when the whole model has lost ``reduction`` of its parameters.

        Raises ``InputError`` for a reduction that no choice can reach.
        """
        budget = budget_within(self.model, self.recipe, self.curves, reduction)
        with self.watch("allocate"):
            return ALLOCATORS.get(self.recipe.allocator)()(self.curves, budget)

    def compress(self, reduction: float) -> tuple[nn.Module, dict[str, Any]]:
        """A compressed copy of the model, and its report (attached to it as ``compression_report``, too)."""
        plan = self.plan(reduction)
        compressed, layers = copy.deepcopy(self.model), []
        with self.watch("fold"):
            for site in self.sites:
                layers.append(self._replace(compressed, site, plan))
        entries = {
            "format": report.FORMAT,
            "model": report.architecture(self.model),
            "recipe": self.recipe.name,
            "recipe_fields": asdict(self.recipe),
            "protocol": "training-free",
            **report.size_report(self.model, compressed),
            "layers": report.as_json(layers),
            "trajectory": list(plan.trajectory),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.watch.seconds.items()},
            "peak_memory_bytes": provenance.peak_memory(self.device),
            "provenance": provenance.record(self.device, self.seed, self.images.record),
        }
        compressed.compression_report = entries  # type: ignore[assignment]  # plain data, so that save() finds it
        return compressed, entries

    def _replace(self, compressed: nn.Module, site: HalfSite, plan: RankPlan) -> LayerReport:
        """Put the smaller module in place, unless all of it stays; what became of the half."""
        names = [name for name in (LOGITS, VALUES, UNITS) if site.name + name in plan.ranks]
        counts = {name: plan.ranks[site.name + name] for name in names}
        if all(count is None for count in counts.values()):
            return self._entry(site, compressed.get_submodule(site.name), None, None, {})
        part, count = self.parts[site.name + names[-1]], counts[names[-1]]
        assert isinstance(part, Part)
        kept = part.units.kept(count)
        rows, approximation = refitted(part, kept)
        output = site.proj if isinstance(site, AttentionSite) else site.fc2
        weight, bias = dense_output(self.model, output)
        shift = self.moments[output.name].mean("input_sum") @ (weight - approximation)
        module = self.model.get_submodule(site.name)
        small: nn.Module
        if isinstance(site, AttentionSite):
            logits = self.parts[site.name + LOGITS]
            assert isinstance(logits, Logits)
            assert part.basis is not None
            directions = logits.units.kept(counts[LOGITS])
            small = fold_attention(
                site, module, logits.query, logits.key, directions, part.basis, kept, rows, bias + shift
            )
        else:
            small = fold_mlp(site, module, kept, rows, bias + shift)
        replace_module(compressed, site.name, small)
        return self._entry(site, small, approximation, shift, counts)

    def _entry(
        self,
        site: HalfSite,
        module: nn.Module,
        approximation: Tensor | None,
        shift: Tensor | None,
        counts: Mapping[str, int | None],
    ) -> LayerReport:
        """``relative_error`` is that of the half's last layer: what the values, or the hidden units, lose."""
        output = site.proj if isinstance(site, AttentionSite) else site.fc2
        weight, errors = dense_output(self.model, output)[0], []
        for moments in (self.moments, self.held_out):
            if moments is None:
                errors.append(None)
            elif approximation is None:
                errors.append(0.0)
            else:
                metric = output_metric(weight, moments[output.name], centred=False)
                errors.append(metric.relative_error(approximation, shift))
        kept: dict[str, float | int | None] = {}
        for name, count in counts.items():
            units = self.parts[site.name + name].units
            label = name.removeprefix(".")
            kept[label] = len(units.order) if count is None else count
            kept[f"{label}_of"] = len(units.order)
            kept[f"{label}_predicted_loss"] = 0.0 if count is None else float(units.loss[count])
        rank = None if not counts else int(kept["value" if isinstance(site, AttentionSite) else "hidden"] or 0)
        width = site.qkv.in_features if isinstance(site, AttentionSite) else site.fc1.in_features
        params = sum(parameter.numel() for parameter in module.parameters())
        assert errors[0] is not None
        return LayerReport(site.name, width, output.out_features, rank, None, params, errors[0], errors[1], kept)


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
) -> BlockAnalysis:
    """What ``pipeline.analyse`` does, for whole halves. The model is taken as it is, and not changed."""
    sites = find_halves(model)
    linears = [linear for site in sites for linear in site.linears]
    with watch("calibrate"):
        moments = moments or collect(model, linears, needs_of(recipe, sites), seen, seed, progress, recipe.probe)
    unseen_moments = None
    if unseen is not None:
        outputs = [site.linears[-1] for site in sites]
        with watch("held_out"):
            unseen_moments = collect(model, outputs, frozenset({"input_second"}), unseen, seed, progress)
    with watch("decompose"):
        parts = decompose_halves(model, recipe, sites, moments, progress)
    curves = part_curves(parts, recipe.rank_multiple)
    return BlockAnalysis(model, recipe, sites, seen, moments, unseen_moments, parts, curves, device, seed, watch)
