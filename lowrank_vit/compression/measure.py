"""What is measured before the budget is spent: losses of units alone and of a whole smaller model, and a search for sizes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from lowrank_vit.compression.case import Case
from lowrank_vit.compression.cut import cut
from lowrank_vit.compression.resume import MEASURED, ResumeStore, identity
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.images import labels_in, of_all_processes
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.files import cache_folder
from lowrank_vit.runtime.progress import track
from lowrank_vit.runtime.tensors import Spill
from lowrank_vit.stages.correct.measured_losses import MeasuredCurves, Replay
from lowrank_vit.stages.search import Part, Question, Search
from lowrank_vit.units.base import Unit

Points = dict[str, list[tuple[int, float]]]  # of every unit: size, loss


def measured_at(
    case: Case, replay: Replay, sizes: Mapping[str, Sequence[int]], store: ResumeStore | None = None
) -> Points:
    """Measure the loss of every part at its ``sizes``, with the rest of the model dense; ``store`` keeps each unit's."""

    def measure(known: Unit) -> Points:
        parts = [curve.name for curve in case.curves_by_unit[known.name]]

        def loss(part: str, size: int) -> float:
            small = known.cut({each: size if each == part else None for each in parts}).fold()
            return replay.divergence(known.name, small)

        return {part: [(size, loss(part, size)) for size in sizes[part]] for part in parts}

    points: Points = {}
    for place, known in enumerate(track(case.decomposed, "measure", shown=case.services.progress)):
        own = partial(measure, known)
        points |= own() if store is None else store(f"{MEASURED}_{place}", own)
    return points


def measure_plan(
    case: Case, plan: RankPlan, batches: Iterable[Tensor], images: int, store: ResumeStore | None = None
) -> dict[str, tuple[int, float]]:
    """Measure every unit at its planned size, by the recipe's objective; see ``Analysis.measure``."""
    sizes = {}
    for known in case.decomposed:
        for unit in (curve.name for curve in case.curves_by_unit[known.name]):
            planned = plan.ranks[unit]
            sizes[unit] = [known.probe_rank(unit) if planned is None else planned]
    with Spill() as kept:
        replay = Replay(case.model, case.recipe.objective, batches, images, kept)
        return {unit: points[0] for unit, points in measured_at(case, replay, sizes, store).items()}


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
        store = store.keyed_by(*plain)
        points = store("sense", lambda: _measured(case, sense, sizes, store))
    return [sense(curve, points[curve.name]) for curve in case.curves]


def loss_of_plan(case: Case, sense: MeasuredCurves, plan: RankPlan) -> float:
    """Measure what the whole model loses by a plan, in the currency of ``sense``."""
    with case.services.watch("sense"):
        modules = {name: each.fold() for name, each in cut(case, plan).items()}
        with _replay(case, sense) as replay:
            return replay.together(modules)


def _measured(case: Case, sense: MeasuredCurves, sizes: Mapping[str, Sequence[int]], store: ResumeStore) -> Points:
    with _replay(case, sense) as replay:
        return measured_at(case, replay, sizes, store)


@contextmanager
def _replay(case: Case, sense: MeasuredCurves) -> Iterator[Replay]:
    comparison = sense.comparison(case.recipe.objective)
    with Spill() as kept:
        batches, features = case.images.each(), sense.of_features
        yield Replay(case.model, comparison, batches, sense.images, kept, features=features)


def search_sizes(case: Case, search: Search, curves: Sequence[ErrorCurve], budget: int) -> list[ErrorCurve]:
    """Return the curves with a search's preferences in place of losses.

    ``curves``: of all units, in prices; ``budget``: what they may cost together. Every process searches the same.
    Raises ``InputError`` for a unit whose sizes are no mixtures, and for images without labels where those are read.
    """
    priced = {curve.name: curve for curve in curves}
    parts = []
    for known in case.decomposed:
        width = known.linears[-1].out_features
        names = [curve.name for curve in case.curves_by_unit[known.name]]
        parts += [Part(priced[name], partial(known.mixture, name), width) for name in names]
    with case.services.watch("search"):
        images = case.images.tensor()[: search.images]
        labels = _labels(case)[: search.images] if search.labelled else None
        question = Question(
            case.model, parts, budget, case.recipe.objective, images, labels, case.services.seed, case.services.progress
        )
        store = case.services.store.keyed_by(case.recipe.record(), budget)
        losses = store("search", lambda: {each.name: each.errors for each in search(question)})
    return [replace(curve, errors=losses[curve.name]) for curve in curves]


def preferred(curves: Sequence[ErrorCurve]) -> RankPlan:
    """Return the sizes that a search prefers, whatever they cost together."""
    best = {curve.name: int(curve.errors.argmin()) for curve in curves}
    return RankPlan({curve.name: best[curve.name] if curve.error(best[curve.name]) < 0 else None for curve in curves})


def _labels(case: Case) -> Tensor:
    """Return the labels of all calibration images, in the order of ``Images.tensor``. Raises ``InputError`` without any."""
    whole = of_all_processes([labels_in(batch) for batch in case.images.batches])
    if int(whole.min()) < 0:
        raise InputError("the calibration images have no labels: search with target='teacher'")
    return whole
