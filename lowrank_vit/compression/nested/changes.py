"""What a refit changed in a module's output layer, carried over to other sizes of the module.

A change belongs to the inputs that the layer has at its size: some directions of the values, or some hidden units. It is
kept as a change of all of them, zero for those that are left out, and as what it adds to the output in the mean. Changes in
this form can be added up. At another size, what a direction that is now left out would add is made of the others by least
squares, exactly as the layer's own weight is; so at the size that it was fitted at, a change is what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_vit.linalg.elimination import refit
from lowrank_vit.records.factors import InputSubset
from lowrank_vit.records.moments import as_float64
from lowrank_vit.units.base import Decomposed, Ranks

Change = tuple[Tensor, Tensor]  # weight and bias, as the sums below have them


def widened(decomposed: Decomposed, ranks: Ranks, change: Change) -> Change:
    """Express a change of the output layer at a size, (s, d) and (d,), in all k directions: (k, d) and (d,).

    The latter is what both add to the output in the mean.
    """
    subset, (weight, bias) = _subset(decomposed), map(as_float64, change)
    kept, mean = _inputs(decomposed, ranks)
    whole = torch.zeros_like(subset.weight)
    if kept is None:
        whole = weight if subset.basis is None else torch.linalg.solve(torch.block_diag(*subset.basis), weight)
    else:
        whole[kept] = weight
    return whole, bias + mean @ weight


def narrowed(decomposed: Decomposed, ranks: Ranks, change: Change) -> Change:
    """Express a change in all directions as one of the output layer at a size: the inverse of ``widened``."""
    subset, (whole, added) = _subset(decomposed), change
    kept, mean = _inputs(decomposed, ranks)
    if kept is not None:
        weight = refit(subset.covariance, whole, kept)
    else:
        weight = whole if subset.basis is None else torch.block_diag(*subset.basis) @ whole
    return weight, added - mean @ weight


def _inputs(decomposed: Decomposed, ranks: Ranks) -> tuple[Tensor | None, Tensor]:
    """Return the directions that the output layer sees at a size, and their mean, (s,); None in a dense module."""
    subset, units = _subset(decomposed), list(decomposed.parts)
    if all(ranks[unit] is None for unit in units):
        return None, subset.mean
    kept = subset.units.kept(ranks[units[-1]])
    if subset.basis is None:
        return kept, subset.mean[kept]
    seen = decomposed.cut(ranks).kept
    return kept, (subset.mean - seen.offset) @ seen.columns


def _subset(decomposed: Decomposed) -> InputSubset:
    """Return the part that makes the output: the last one."""
    subset = list(decomposed.parts.values())[-1]
    assert isinstance(subset, InputSubset)
    return subset


def check_change(decomposed: Decomposed, ranks: Ranks, change: Change) -> None:
    """Raise ``ValueError`` for a change that is not of the output layer at a size."""
    subset, units = _subset(decomposed), list(decomposed.parts)
    dense = all(ranks[unit] is None for unit in units)
    count = len(subset.weight) if dense or ranks[units[-1]] is None else ranks[units[-1]]
    if (change[0].shape, change[1].shape) != ((count, subset.weight.shape[1]), (subset.weight.shape[1],)):
        raise ValueError(f"the change of {decomposed.unit.name} is {tuple(change[0].shape)}, not of {count} directions")
