"""Losses that are measured before the budget is spent: of units alone, and of a whole smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from lowrank_vit.compression.resume import Phases, identity
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.spill import Spill
from lowrank_vit.stages.correct.measured_curves import MeasuredCurves
from lowrank_vit.stages.correct.measured_losses import Replay

if TYPE_CHECKING:
    from lowrank_vit.compression.analysis import Analysis

Points = dict[str, list[tuple[int, float]]]  # of every unit: size, loss


def measured_at(analysis: Analysis, replay: Replay, sizes: Mapping[str, Sequence[int]]) -> Points:
    """Measure the loss of every unit at its ``sizes``, with the rest of the model dense."""
    points: Points = {}
    for known in track(analysis.decomposed, "measure", shown=analysis.progress):
        units = [curve.name for curve in analysis.curves_by_unit[known.unit.name]]
        for unit in units:
            points[unit] = []
            for size in sizes[unit]:
                small = known.cut({each: size if each == unit else None for each in units}).fold()
                points[unit].append((size, replay.divergence(known.unit.name, small)))
    return points


def measured_by_plan(
    analysis: Analysis, plan: RankPlan, batches: Iterable[Tensor], images: int
) -> dict[str, tuple[int, float]]:
    """Measure every unit at its planned size, by the recipe's objective; see ``Analysis.measure``."""
    sizes = {}
    for known in analysis.decomposed:
        for unit in (curve.name for curve in analysis.curves_by_unit[known.unit.name]):
            planned = plan.ranks[unit]
            sizes[unit] = [known.probe_rank(unit) if planned is None else planned]
    with Spill() as kept:
        replay = Replay(analysis.model, analysis.recipe.objective, batches, images, kept)
        return {unit: points[0] for unit, points in measured_at(analysis, replay, sizes).items()}


def sensed(analysis: Analysis, sense: MeasuredCurves) -> list[ErrorCurve]:
    """Return the curves with losses that are measured on the calibration images.

    Those of named images are kept in the cache, by all that they depend on, since measuring takes longest.
    """
    sizes = {curve.name: sense.sizes(curve) for curve in analysis.curves}
    record = {**analysis.recipe.record(), "allocator": None, "name": "", "about": ""}
    hyperparameters = {slot: own for slot, own in record["hyperparameters"].items() if slot != "allocator"}
    plain = [{**record, "hyperparameters": hyperparameters}, sizes, analysis.seed]
    phases = analysis.phases
    if analysis.images.fingerprint is not None:
        key = identity(analysis.model, analysis.moments, analysis.images.fingerprint)
        phases = Phases(cache_folder() / "curves", key, analysis.device)
    with analysis.watch("sense"):
        points = phases.of(*plain)("sense", lambda: _measured(analysis, sense, sizes))
    return [sense(curve, points[curve.name]) for curve in analysis.curves]


def lost(analysis: Analysis, sense: MeasuredCurves, plan: RankPlan) -> float:
    """Measure what the whole model loses by a plan, in the currency of ``sense``."""
    with analysis.watch("sense"):
        modules = {name: cut.fold() for name, cut in analysis.cuts(plan).items()}
        with _replay(analysis, sense) as replay:
            return replay.together(modules)


def _measured(analysis: Analysis, sense: MeasuredCurves, sizes: Mapping[str, Sequence[int]]) -> Points:
    with _replay(analysis, sense) as replay:
        return measured_at(analysis, replay, sizes)


@contextmanager
def _replay(analysis: Analysis, sense: MeasuredCurves) -> Iterator[Replay]:
    comparison = sense.comparison(analysis.recipe.objective)
    with Spill() as kept:
        batches, features = analysis.images.each(), sense.of_features
        yield Replay(analysis.model, comparison, batches, sense.images, kept, features=features)
