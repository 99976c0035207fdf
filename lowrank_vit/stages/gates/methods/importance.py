"""Soft gates with an L1 penalty, then one threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.records.sites import HIDDEN, INPUT, VALUE
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.gates import GRADUAL, Progress, StillGates
from lowrank_vit.stages.gates.gates import Gate, Place


class SoftGate(Gate):
    """Hold real multipliers, 1 at the start; the larger, the more a part is worth."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.value = nn.Parameter(torch.ones(place.count))

    def forward(self) -> Tensor:
        """Return the multipliers, (count,)."""
        return self.value

    def scores(self) -> Tensor:
        """Return the multipliers' sizes, (count,)."""
        return self.value.detach().abs()

    def open(self) -> Tensor:
        """Tell which multipliers are above a half, (count,)."""
        return self.scores() > 0.5


@GRADUAL.register("importance")
@dataclass(frozen=True)
class ImportanceGates(StillGates):
    """Multiply what qkv, proj, fc1 and fc2 read by gates a1 to a4; loss plus ``sparsity * sum |a|`` (Zhu et al. 2021).

    VTP, "Visual Transformer Pruning": a1 and a3 on the channels of the stream that a module reads, a2 on the values'
    dimensions, a4 on the hidden units. Modules that several layers read the input of, and attention whose queries and keys
    stay as they are, have no gates on it. ``lr``: the gates' own. The paper's 6.25e-6 moves a gate by less than 0.01 in
    1000 steps of Adam, which is enough for its 100 epochs of ImageNet, not for a short run.
    Raises ``InputError`` for numbers out of range.
    """

    revision: ClassVar[int] = 1

    sparsity: float = 1e-3
    lr: float = 5e-2

    units: ClassVar[tuple[str, ...]] = (VALUE, HIDDEN, INPUT)
    alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.sparsity < math.inf and 0 < self.lr < math.inf):
            raise InputError(f"sparsity={self.sparsity}, lr={self.lr}: from 0 on, and above 0; both finite")

    def gate(self, place: Place) -> Gate:
        """Make the gates of a unit."""
        return SoftGate(place)

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        """Return one group, whose gates do not decay."""
        return [
            {
                "params": [each for gate in gates.values() for each in gate.parameters()],
                "lr": self.lr,
                "weight_decay": 0.0,
            }
        ]

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        """Return ``sparsity * sum |a|``."""
        return self.sparsity * torch.stack([gate().abs().sum() for gate in gates.values()]).sum()
