"""Learn a structure: put gates into a model, train, take the gates out again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank_vit.architectures.base import survey
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.factors import SplitSite
from lowrank_vit.records.sites import MIXER, ROW, PoolSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.hardware import ONE_PROCESS, Hardware
from lowrank_vit.runtime.tensors import storable
from lowrank_vit.stages.gates import GradualMethod
from lowrank_vit.stages.gates.expected import GatedSite, Prices
from lowrank_vit.stages.gates.gates import Gate, places
from lowrank_vit.stages.gates.mixing import MixerGate

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.loggers import Logger


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


def learn_gates(
    model: nn.Module,
    method: GradualMethod,
    *,
    teacher: nn.Module | None = None,
    images: Tensor | None = None,
    data_module: "LightningDataModule | None" = None,
    target: float = 0.5,
    epochs: int = 10,
    hardware: Hardware = ONE_PROCESS,
    loggers: "Logger | list[Logger] | None" = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    **fields: Any,
) -> LearntGates:
    """Train gates on a model and, where a ``data_module`` has labelled images, its weights, in place; remove the gates.

    Either ``images``, (N, C, H, W), with a ``teacher``, or a ``data_module``; ``fields`` are further ones of
    ``GradualTraining``. ``target``: the share of the parameters that shall be left. With ``checkpoint_dir`` each epoch ends
    in ``last.ckpt``, from which a later call continues and, on the same kind and number of devices, ends with the numbers of
    an undisturbed run (bitwise on CPU).
    Raises ``InputError`` for bad settings, unlabelled images, models without units, or a checkpoint of another run.
    """
    from lowrank_vit.stages.gates.train_gates import trained  # with Lightning

    _check(method, teacher, images, data_module)
    hardware = replace(hardware, precision=hardware.mixed_precision)
    gates, prices = make_gates(model, method), Prices.of(model, sites_of(model, method))
    settings = {"target": target, "images": images, "epochs": epochs, "seed": seed, **fields}
    running = {"checkpoint_dir": checkpoint_dir, "resume": resume, "loggers": loggers, "progress": progress}
    return LearntGates(
        *trained(model, teacher, method, gates, prices, settings, data_module, hardware=hardware, **running)
    )


def _check(
    method: GradualMethod, teacher: nn.Module | None, images: Tensor | None, data_module: "LightningDataModule | None"
) -> None:
    """Raise ``InputError`` unless there is one thing to learn from, and the method can learn from it."""
    if (images is None) == (data_module is None) or (images is not None and teacher is None):
        raise InputError(
            "a structure is learnt either on images, with a teacher, or on a data module: give one of them"
        )
    if images is not None and not method.alone:
        raise InputError(f"{type(method).__name__} changes weights and gates together: give it labelled images")
