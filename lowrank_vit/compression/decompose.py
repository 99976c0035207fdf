"""The decomposition of all units of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowrank_vit.compression.case import Services
from lowrank_vit.compression.resume import DECOMPOSED
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import divide_work
from lowrank_vit.runtime.progress import track
from lowrank_vit.units.base import Unit


def decompose(
    model: nn.Module, units: Sequence[Unit], moments: Mapping[str, Moments], services: Services
) -> dict[str, dict[str, Any]]:
    """Decompose all parts of all units, shared out among the processes by their work.

    Raises ``InputError`` that names the module whose statistics cannot be used.
    """
    by_name = {unit.name: unit for unit in units}

    def parts_of(unit: Any) -> dict[str, Any]:
        try:
            parts: dict[str, Any] = unit.decompose(model, moments)
        except (torch.linalg.LinAlgError, ValueError) as error:
            method = type(unit.method).__name__
            remedy = "leave it out by `sites=`, or use more images"
            raise InputError(f"layer {unit.name!r} cannot be decomposed by {method}: {error}; {remedy}") from error
        return parts

    def work(names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: parts_of(by_name[name]) for name in track(names, "decompose", shown=services.progress)}

    def whole() -> dict[str, dict[str, Any]]:
        return divide_work({unit.name: unit.work for unit in units}, work, services.device)

    with services.watch("decompose"):
        return services.store(DECOMPOSED, whole)
