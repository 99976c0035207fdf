"""What is known of a model before a size is chosen. A step takes a case and returns a value; nothing is handed back up."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lowrank_vit.compression.prices import setting_of
from lowrank_vit.compression.recipe import Recipe
from lowrank_vit.compression.resume import ResumeStore
from lowrank_vit.compression.subject import Subject
from lowrank_vit.records.costs import Cost
from lowrank_vit.records.curves import ErrorCurve
from lowrank_vit.records.images import Images
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import Fallback
from lowrank_vit.runtime.progress import Stopwatch
from lowrank_vit.stages.evaluate.speed import Setting
from lowrank_vit.stages.gates.learnt_gates import LearntGates
from lowrank_vit.units.base import Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """Hold what every step may use beside its case; ``store`` keeps finished phases, from which a later run goes on."""

    device: torch.device
    store: ResumeStore
    seed: int = 0
    progress: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Hold a model, a recipe, the model's units, their statistics on seen and on unseen images, and what they are made of.

    ``fallback``: what of the model the recipe could not take. ``batch_size``, ``mode``: how the smaller model is to
    run, for a budget in time. ``learnt``: what gates have learnt.
    """

    subject: Subject
    recipe: Recipe
    units: Sequence[Unit]
    parts: Mapping[str, Mapping[str, Any]]  # by unit, by part
    images: Images
    unseen: Images | None
    moments: Mapping[str, Moments]
    held_out: Mapping[str, Moments] | None
    services: Services
    fallback: Fallback | None = None
    batch_size: int = 8
    mode: str = "eager"
    learnt: LearntGates | None = None

    @property
    def dense(self) -> nn.Module:
        """Return the model as it was given."""
        return self.subject.dense

    @property
    def model(self) -> nn.Module:
        """Return the model in the form that units are cut from."""
        return self.subject.model

    @cached_property
    def decomposed(self) -> list[Unit]:
        known = [unit.decomposed(self.model, self.parts[unit.name], self.moments, self.held_out) for unit in self.units]
        caps = sorted({each.cap for each in known if each.cap is not None})
        if caps:
            capped = sum(each.cap is not None for each in known)
            logger.warning(
                "the mean image caps the rank of %d of %d layers at %s (see the report): above it, equation (6) is zero",
                capped,
                len(known),
                caps,
            )
        return known

    @cached_property
    def curves_by_unit(self) -> dict[str, list[ErrorCurve]]:
        return {known.name: known.curves() for known in self.decomposed}

    @property
    def curves(self) -> list[ErrorCurve]:
        return [curve for curves in self.curves_by_unit.values() for curve in curves]

    @property
    def dense_cost(self) -> Cost:
        return self.subject.cost

    @property
    def setting(self) -> Setting:
        """Return where the smaller model is to run, and how."""
        return setting_of(self.model, self.subject.narrow, self.batch_size, self.mode)
