"""A recipe's search for the sizes of all units, on calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.images import labels_in
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import gathered
from lowrank_vit.stages.search import Question, Search, Unit

if TYPE_CHECKING:
    from lowrank_vit.compression.analysis import Analysis


def searched(analysis: Analysis, search: Search, curves: Sequence[ErrorCurve], budget: int) -> list[ErrorCurve]:
    """Return the curves with a search's preferences in place of losses.

    ``curves``: of all units, in prices; ``budget``: what they may cost together. Every process searches the same.
    Raises ``InputError`` for a unit whose sizes are no mixtures, and for images without labels where those are read.
    """
    priced = {curve.name: curve for curve in curves}
    units = []
    for known in analysis.decomposed:
        width = known.unit.linears[-1].out_features
        names = [curve.name for curve in analysis.curves_by_unit[known.unit.name]]
        units += [Unit(priced[name], partial(known.mixture, name), width) for name in names]
    with analysis.watch("search"):
        images = analysis.images.tensor()[: search.images]
        labels = _labels(analysis)[: search.images] if search.labelled else None
        question = Question(
            analysis.model, units, budget, analysis.recipe.objective, images, labels, analysis.seed, analysis.progress
        )
        phases = analysis.phases.of(analysis.recipe.record(), budget)
        losses = phases("search", lambda: {each.name: each.errors for each in search(question)})
    return [replace(curve, errors=losses[curve.name]) for curve in curves]


def preferred(curves: Sequence[ErrorCurve]) -> RankPlan:
    """Return the sizes that a search prefers, whatever they cost together."""
    best = {curve.name: int(curve.errors.argmin()) for curve in curves}
    return RankPlan({curve.name: best[curve.name] if curve.error(best[curve.name]) < 0 else None for curve in curves})


def _labels(analysis: Analysis) -> Tensor:
    """Return the labels of all calibration images, in the order of ``Images.tensor``. Raises ``InputError`` without any."""
    shares = gathered(torch.cat([labels_in(batch) for batch in analysis.images.batches]))
    whole = shares[0].new_empty(sum(map(len, shares)))
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    if int(whole.min()) < 0:
        raise InputError("the calibration images have no labels: search with target='teacher'")
    return whole
