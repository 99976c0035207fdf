"""What the figures measure on a dense model: one file for each figure.

A measurement is a function ``(model, data, job, ledger)`` to a dictionary of plain values; it tells the ledger how it
goes, and a long one keeps there what it has, so that it can be interrupted. The model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.measures import accuracy, compensation, energy, loss
from experiments.registry import Job
from lowrank_vit.data import ImageData
from lowrank_vit.registry import unknown

if TYPE_CHECKING:
    from experiments.ledger import Ledger


@dataclass(frozen=True)
class Measure:
    """``run`` measures; ``forward_passes``: of one image, that a job takes."""

    run: Callable[[nn.Module, ImageData, Job, Ledger], dict[str, Any]]
    forward_passes: Callable[[Job], float]


MEASURES = {
    "energy": Measure(energy.measure, energy.forward_passes),
    "accuracy_by_block": Measure(accuracy.by_block, accuracy.forward_passes),
    "accuracy_by_layer": Measure(accuracy.by_layer, accuracy.forward_passes),
    "compensation": Measure(compensation.measure, compensation.forward_passes),
    "loss": Measure(loss.measure, loss.forward_passes),
}


def get_measure(name: str) -> Measure:
    """The measurement called ``name``. Raises ``InputError`` with the nearest name otherwise."""
    if name not in MEASURES:
        raise unknown("measure", name, MEASURES)
    return MEASURES[name]
