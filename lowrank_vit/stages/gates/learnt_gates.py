"""What gates are made for, and what they have learnt; their training, with Lightning, is in ``train_gates.py``."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import survey
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.factors import SplitSite
from lowrank_vit.records.sites import MIXER, ROW, PoolSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.gates import GradualMethod
from lowrank_vit.stages.gates.expected import GatedSite
from lowrank_vit.stages.gates.gates import Gate, places
from lowrank_vit.stages.gates.mixing import MixerGate


@storable
@dataclass(frozen=True)
class LearntGates:
    """Hold what gates have learnt: a score for each part of each unit, not negative, and how they were trained."""

    scores: Mapping[str, Tensor]  # by the unit's name; shape: (count,)
    described: dict[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # of units that become something else

    @property
    def protocol(self) -> str:
        return self.described["protocol"]


def sites_of(model: nn.Module, method: GradualMethod | None = None) -> list[GatedSite]:
    """List what can have gates: attention and MLPs, not attention pooling; or single layers, for a method of rows."""
    if method is not None and ROW in method.units:
        return [SplitSite(site, method.share) for site in find_sites(model)]  # type: ignore[attr-defined]
    return [site for site in survey(model)[0] if not isinstance(site, PoolSite)]


@torch.no_grad()
def with_mixers(model: nn.Module, learnt: LearntGates) -> nn.Module:
    """Return a copy with attention replaced by what its gates have learnt; without such gates, the model itself.

    Raises ``InputError`` where the gates were learnt on another model.
    """
    if not learnt.tensors:
        return model
    model, sites = copy.deepcopy(model), sites_of(model)
    for place in places(sites, (MIXER,)):
        if place.name not in learnt.tensors:
            raise InputError(f"nothing was learnt about {place.module}: learn with this model and this recipe")
        attention = model.get_submodule(place.layer)
        weight = next(attention.parameters())
        gate = MixerGate(place).to(weight)
        gate.load_state_dict(dict(learnt.tensors[place.name]))
        replace_module(model, place.layer, gate.mixer(attention))
    return model


def make_gates(model: nn.Module, method: GradualMethod) -> dict[str, Gate]:
    """Make the gates of a method by their units' names. Raises ``InputError`` for a model that has no place for any."""
    gates = {place.name: method.gate(place) for place in places(sites_of(model, method), method.units)}
    if not gates:
        raise InputError(
            f"{type(model).__name__} has no units for gates: its attention modules and MLPs are of other kinds"
        )
    return gates
