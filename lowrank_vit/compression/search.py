"""A recipe's search for the sizes of all units, on calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lowrank_vit.compression.case import Case
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.images import labels_in
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.stages.search import Question, Search, Unit


def search_sizes(case: Case, search: Search, curves: Sequence[ErrorCurve], budget: int) -> list[ErrorCurve]:
    """Return the curves with a search's preferences in place of losses.

    ``curves``: of all units, in prices; ``budget``: what they may cost together. Every process searches the same.
    Raises ``InputError`` for a unit whose sizes are no mixtures, and for images without labels where those are read.
    """
    priced = {curve.name: curve for curve in curves}
    units = []
    for known in case.decomposed:
        width = known.unit.linears[-1].out_features
        names = [curve.name for curve in case.curves_by_unit[known.unit.name]]
        units += [Unit(priced[name], partial(known.mixture, name), width) for name in names]
    with case.services.watch("search"):
        images = case.images.tensor()[: search.images]
        labels = _labels(case)[: search.images] if search.labelled else None
        question = Question(
            case.model, units, budget, case.recipe.objective, images, labels, case.services.seed, case.services.progress
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
    shares = gathered(torch.cat([labels_in(batch) for batch in case.images.batches]))
    whole = shares[0].new_empty(sum(map(len, shares)))
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    if int(whole.min()) < 0:
        raise InputError("the calibration images have no labels: search with target='teacher'")
    return whole
