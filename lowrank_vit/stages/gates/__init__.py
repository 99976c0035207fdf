"""Structure that is learnt while training: gates on what can be left out.

A method is a frozen dataclass: it makes gates, gives them learning rates, adds a penalty to the loss, and changes masks after
a step. What it has learnt is a score for each part of each unit: the pipeline hardens a model to any budget by a threshold on
them, and folds what is left as it folds any other choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, Place


@dataclass(frozen=True)
class Progress:
    """Describe how far a training is; ``target``: the share of the parameters to be left; ``prices``: what parts cost."""

    step: int
    steps: int
    target: float
    prices: Prices


class GradualMethod:
    """Define the interface of a method; by default it changes nothing between steps. ``gates``: by the names of their units.

    ``units``: the kinds of units that get gates, HEAD, VALUE, HIDDEN, INPUT, OUTPUT; or ROW, with a ``share``. ``alone``:
    whether gates can be trained alone, while the weights stay frozen.
    """

    units: ClassVar[tuple[str, ...]]
    alone: ClassVar[bool]
    lr: float  # of gates that have parameters

    def gate(self, place: Place) -> Gate:
        """Make the gates of a unit, all open: the model's function stays as it was, bit by bit."""
        raise NotImplementedError

    def groups(self, gates: Mapping[str, Gate], lr: float) -> list[dict[str, Any]]:
        """Return the gates' parameters, if they have any, in groups for AdamW, with their learning rates.

        By default these are of one group, with the method's own rate and without decay. ``lr``: that of the weights.
        """
        parameters = [each for gate in gates.values() for each in gate.parameters()]
        return [{"params": parameters, "lr": self.lr, "weight_decay": 0.0}] if parameters else []

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        """Return what is added to the loss of a step: by default nothing."""
        return torch.zeros(())

    def begin(self, gates: Mapping[str, Gate], prices: Prices, target: float, seed: int) -> None:
        """Close the parts that the training begins without; most methods begin with all gates open."""

    def before_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        """Change masks, or gradients, by the gradients of the step to be taken."""

    def after_step(self, layers: Sequence[GatedLayer], progress: Progress) -> None:
        """Change masks or weights after a step."""


GRADUAL: Registry[type[GradualMethod]] = Registry("gradual method", "lowrank_vit.methods")
