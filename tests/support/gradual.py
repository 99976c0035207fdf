"""Gates on a tiny model, and a short run of them."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.gates import Gate, Place, places
from lowrank_vit.stages.gates.learnt_gates import LearntGates, sites_of
from lowrank_vit.stages.gates.train_gates import learn_gates
from tests.support.hardware import on_cpu
from tests.support.models import images, tiny

IMAGES = images(40)  # two batches of sixteen, and eight that are left out


class FixedGate(Gate):
    """Multipliers that are given."""

    def __init__(self, place: Place, mask: Tensor) -> None:
        super().__init__(place)
        self.register_buffer("mask", mask)

    def forward(self) -> Tensor:
        return self.mask.double()

    def scores(self) -> Tensor:
        return self.mask.double()

    def open(self) -> Tensor:
        return self.mask.bool()


def masks(model: nn.Module, units: Iterable[str], seed: int = 0, share: float = 0.6) -> dict[str, FixedGate]:
    """Random masks for all units of these kinds; at least one part of each stays."""
    generator, gates = torch.Generator().manual_seed(seed), {}
    for place in places(sites_of(model), tuple(units)):
        mask = torch.rand(place.count, generator=generator) < share
        mask[torch.randint(place.count, (), generator=generator)] = True
        gates[place.name] = FixedGate(place, mask)
    return gates


def run(name: str, model: nn.Module | None = None, **options: Any) -> LearntGates:
    """Train the gates of a method alone, for three short epochs."""
    settings = {"epochs": 3, "batch_size": 16, "target": 0.6, **options}
    dense = model or tiny()
    return learn_gates(copy.deepcopy(dense), GRADUAL.get(name)(), teacher=dense, images=IMAGES, **on_cpu(**settings))
