"""Inputs and inner parts by what trained gates have learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.records.columns import Columns
from lowrank_vit.records.moments import Moments
from lowrank_vit.stages.decompose import learnt_scores
from lowrank_vit.stages.decompose.columns import COLUMNS


@COLUMNS.register("learnt")
@dataclass(frozen=True)
class LearntColumns:
    """Score inputs, and dimensions of values or hidden units, by their gates; biases take up the mean of those removed."""

    revision: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, output: Moments, first: Moments | None) -> Columns:
        """Order the parts."""
        inner, inner_mean = learnt_scores(output), output.mean("input_sum")
        if first is None:
            return Columns.by_score(inner, None, inner_mean)
        return Columns.by_score(inner, learnt_scores(first), inner_mean, first.mean("input_sum"))
