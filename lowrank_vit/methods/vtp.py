"""VTP, "Visual Transformer Pruning" (Zhu et al. 2021): gates on what modules read, on values and on hidden units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.objectives.classification import Classification
from lowrank_vit.records.factors import Directions, InputSubset, Logits, PartsInOrder
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import HIDDEN, INPUT, VALUE, AttentionSite, MlpSite
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.allocate.rules import EqualError
from lowrank_vit.stages.decompose import ATTENTIONS, COLUMNS, MLPS, Weights, learnt_scores
from lowrank_vit.stages.gates import GRADUAL, GradualMethod, Progress
from lowrank_vit.stages.gates.gates import Gate, Place


@ATTENTIONS.register("first_order")
@dataclass(frozen=True)
class FirstOrderValues:
    """Score a dimension of the values by ``|dL/da|`` of a gate a = 1 on it: VTP's gate a2 (Zhu et al. 2021), untrained.

    The input column of the output layer goes together with the dimension of the values that makes it. Root mean square
    over images, for labels that the model draws itself: the KL has no slope at the dense model. Nothing is refitted.
    """

    needs: ClassVar[tuple[frozenset[str], frozenset[str]]] = (frozenset(), frozenset({"gate_fisher"}))
    units: ClassVar[tuple[str, ...]] = (VALUE,)
    pools: ClassVar[bool] = False
    biases: ClassVar[bool] = True

    def logits(self, site: AttentionSite, weight: Tensor, bias: Tensor, moments: Moments) -> Logits:
        return Logits.whole(site.qkv.heads, site.head_width, weight)

    def values(self, site: AttentionSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        """Order the dimensions of all heads; weight: (h s, n)."""
        scores = moments.mean("gate_fisher").diagonal().clamp_min(0).sqrt()
        return InputSubset.pruned(Directions.by_score(scores), weight)


@MLPS.register("first_order")
@dataclass(frozen=True)
class FirstOrderUnits:
    """Score a hidden unit by ``|dL/da|`` of a gate a = 1 on it: VTP's gate a4 (Zhu et al. 2021), before it is trained.

    Root mean square over images, for labels that the model draws itself: the KL has no slope at the dense model.
    """

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"gate_fisher"}),)

    def __call__(self, site: MlpSite, weight: Tensor, moments: Moments, made: Weights) -> InputSubset:
        scores = moments.mean("gate_fisher").diagonal().clamp_min(0).sqrt()
        return InputSubset.pruned(Directions.by_score(scores), weight)


@COLUMNS.register("learnt")
@dataclass(frozen=True)
class LearntColumns:
    """Score inputs, and dimensions of values or hidden units, by their gates; biases take up the mean of those removed."""

    needs: ClassVar[frozenset[str]] = frozenset({"input_second"})

    def __call__(self, output: Moments, first: Moments | None) -> PartsInOrder:
        inner, inner_mean = learnt_scores(output), output.mean("input_sum")
        if first is None:
            return PartsInOrder.by_score(inner, None, inner_mean)
        return PartsInOrder.by_score(inner, learnt_scores(first), inner_mean, first.mean("input_sum"))


class SoftGate(Gate):
    """Hold real multipliers, 1 at the start; the larger, the more a part is worth."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.value = nn.Parameter(torch.ones(place.count))

    def forward(self) -> Tensor:
        return self.value

    def scores(self) -> Tensor:
        return self.value.detach().abs()

    def open(self) -> Tensor:
        return self.scores() > 0.5


@GRADUAL.register("importance")
@dataclass(frozen=True)
class ImportanceGates(GradualMethod):
    """Multiply what qkv, proj, fc1 and fc2 read by gates a1 to a4; loss plus ``sparsity * sum |a|`` (Zhu et al. 2021).

    VTP, "Visual Transformer Pruning": a1 and a3 on the channels of the stream that a module reads, a2 on the values'
    dimensions, a4 on the hidden units. Modules that several layers read the input of, and attention whose queries and keys
    stay as they are, have no gates on it. ``lr``: the gates' own. The paper's 6.25e-6 moves a gate by less than 0.01 in
    1000 steps of Adam, which is enough for its 100 epochs of ImageNet, not for a short run.
    Raises ``InputError`` for numbers out of range.
    """

    sparsity: float = 1e-3
    lr: float = 5e-2

    units: ClassVar[tuple[str, ...]] = (VALUE, HIDDEN, INPUT)
    alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.sparsity < math.inf and 0 < self.lr < math.inf):
            raise InputError(f"sparsity={self.sparsity}, lr={self.lr}: from 0 on, and above 0; both finite")

    def gate(self, place: Place) -> Gate:
        return SoftGate(place)

    def penalty(self, gates: Mapping[str, Gate], progress: Progress) -> Tensor:
        return self.sparsity * torch.stack([gate().abs().sum() for gate in gates.values()]).sum()


add_recipe(
    "vtp-taylor",
    units={"attention": FirstOrderValues(), "mlp": FirstOrderUnits()},
    allocator=EqualError(),
    objective=Classification(sampling="signs"),
    about="values' dimensions and hidden units by first-order scores of VTP's gates, untrained (Zhu et al.)",
)


GATES_ALONE = add_recipe(
    "vtp-gates",
    units={"columns": LearntColumns()},
    allocator=EqualError(),
    gradual=ImportanceGates(),
    about="VTP's gates on modules' inputs, values' dimensions and hidden units, trained alone (Zhu et al.)",
)


add_recipe(
    "vtp",
    GATES_ALONE,
    labelled=True,
    about="VTP's gates a1 to a4, trained with the weights on labelled images (Zhu et al.)",
)


look("vtp-taylor", "^", (2, 2), "pink", "VTP's gates, first order", "gates a2 and a4 alone, never trained")


look(
    "vtp-gates", "^", (4, 2), "blue", "VTP's gates alone",
    "gates a1 to a4 on calibration images; the weights stay frozen",
)  # fmt: skip


look("vtp", "^", (), "red", "VTP", "L1 and learning rate of gates a1 to a4 are ours; half of the epochs with gates")


PRINTED.add(
    "vtp",
    (
        Printed("deit_b", "VTP", "67.3M (-22%)", 81.3, "Zhu et al. 2021", "full-ft", "100 with gates, then 100"),
        Printed("deit_b", "VTP", "48.0M (-45%)", 80.7, "Zhu et al. 2021", "full-ft", "100 with gates, then 100"),
    ),
)
