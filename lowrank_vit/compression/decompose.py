"""The decomposition of all units of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowrank_vit.compression.case import Services
from lowrank_vit.records.moments import Moments
from lowrank_vit.runtime.divide import divide_work
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.progress import track


def decompose(
    model: nn.Module, groups: Sequence[Any], moments: Mapping[str, Moments], services: Services
) -> dict[str, dict[str, Any]]:
    """Decompose all units of all groups, shared out among the processes by their work.

    Raises ``InputError`` that names the module whose statistics cannot be used.
    """
    by_name = {group.name: group for group in groups}

    def parts_of(group: Any) -> dict[str, Any]:
        try:
            parts: dict[str, Any] = group.decompose(model, moments)
        except (torch.linalg.LinAlgError, ValueError) as error:
            method = type(group.method).__name__
            remedy = "leave it out with --sites, or use more images"
            raise InputError(f"layer {group.name!r} cannot be decomposed by {method}: {error}; {remedy}") from error
        return parts

    def work(names: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {name: parts_of(by_name[name]) for name in track(names, "decompose", shown=services.progress)}

    def whole() -> dict[str, dict[str, Any]]:
        return divide_work({group.name: group.work for group in groups}, work, services.device)

    with services.watch("decompose"):
        return services.store("decompose", whole)
