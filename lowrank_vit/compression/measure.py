"""Losses that are measured before the budget is spent: of units alone, and of a whole smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from lowrank_vit.compression.case import Case
from lowrank_vit.compression.cut import cut
from lowrank_vit.compression.resume import ResumeStore, identity
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves, Replay

Points = dict[str, list[tuple[int, float]]]  # of every unit: size, loss


def measured_at(case: Case, replay: Replay, sizes: Mapping[str, Sequence[int]]) -> Points:
    """Measure the loss of every unit at its ``sizes``, with the rest of the model dense."""
    points: Points = {}
    for known in track(case.decomposed, "measure", shown=case.services.progress):
        units = [curve.name for curve in case.curves_by_unit[known.unit.name]]
        for unit in units:
            points[unit] = []
            for size in sizes[unit]:
                small = known.cut({each: size if each == unit else None for each in units}).fold()
                points[unit].append((size, replay.divergence(known.unit.name, small)))
    return points


def measure_plan(case: Case, plan: RankPlan, batches: Iterable[Tensor], images: int) -> dict[str, tuple[int, float]]:
    """Measure every unit at its planned size, by the recipe's objective; see ``Analysis.measure``."""
    sizes = {}
    for known in case.decomposed:
        for unit in (curve.name for curve in case.curves_by_unit[known.unit.name]):
            planned = plan.ranks[unit]
            sizes[unit] = [known.probe_rank(unit) if planned is None else planned]
    with Spill() as kept:
        replay = Replay(case.model, case.recipe.objective, batches, images, kept)
        return {unit: points[0] for unit, points in measured_at(case, replay, sizes).items()}


def measured_curves(case: Case, sense: MeasuredCurves) -> list[ErrorCurve]:
    """Return the curves with losses that are measured on the calibration images.

    Those of named images are kept in the cache, by all that they depend on, since measuring takes longest.
    """
    sizes = {curve.name: sense.sizes(curve) for curve in case.curves}
    record = {**case.recipe.record(), "allocator": None, "name": "", "about": ""}
    hyperparameters = {slot: own for slot, own in record["hyperparameters"].items() if slot != "allocator"}
    plain = [{**record, "hyperparameters": hyperparameters}, sizes, case.services.seed]
    store = case.services.store
    if case.images.fingerprint is not None:
        key = identity(case.model, case.moments, case.images.fingerprint)
        store = ResumeStore(cache_folder() / "curves", key, case.services.device)
    with case.services.watch("sense"):
        points = store.keyed_by(*plain)("sense", lambda: _measured(case, sense, sizes))
    return [sense(curve, points[curve.name]) for curve in case.curves]


def loss_of_plan(case: Case, sense: MeasuredCurves, plan: RankPlan) -> float:
    """Measure what the whole model loses by a plan, in the currency of ``sense``."""
    with case.services.watch("sense"):
        modules = {name: each.fold() for name, each in cut(case, plan).items()}
        with _replay(case, sense) as replay:
            return replay.together(modules)


def _measured(case: Case, sense: MeasuredCurves, sizes: Mapping[str, Sequence[int]]) -> Points:
    with _replay(case, sense) as replay:
        return measured_at(case, replay, sizes)


@contextmanager
def _replay(case: Case, sense: MeasuredCurves) -> Iterator[Replay]:
    comparison = sense.comparison(case.recipe.objective)
    with Spill() as kept:
        batches, features = case.images.each(), sense.of_features
        yield Replay(case.model, comparison, batches, sense.images, kept, features=features)
