"""Several labels for an image: every output is a yes or a no of its own. No label is read."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank_vit.objectives import OBJECTIVES, Objective, image_signs
from lowrank_vit.objectives.classification import classes_of


def yes_or_no(logits: Tensor) -> Tensor:
    """Return the log-probabilities of yes and of no, (B, labels, 2), of logits, (B, labels).

    >>> yes_or_no(torch.tensor([[0.0]])).exp()
    tensor([[[0.5000, 0.5000]]])
    """
    return torch.stack([logits, torch.zeros_like(logits)], -1).log_softmax(-1)


@OBJECTIVES.register("multi_label")
@dataclass(frozen=True)
class MultiLabel(Objective):
    """Keep the predicted probability of every label: ``sum_j KL(Bernoulli(p_j) || Bernoulli(p'_j))`` in nats per image.

    It is for classifiers that were trained by binary cross-entropy.
    """

    measures: ClassVar[str] = "label_kl"
    unit: ClassVar[str] = "nats, summed over the labels"

    @property
    def probe_name(self) -> str:
        return "label signs"

    def lacks(self, model: nn.Module) -> str:
        """Say that a model has no classifier, where it has none."""
        return "" if classes_of(model) else "has no classifier"

    def probe(self, outputs: Tensor, images: Tensor, seed: int) -> Tensor:
        """Compute ``sum_j e_j sqrt(p_j (1 - p_j)) x_j`` of logits x, (B, labels), with random signs e; summed over the batch.

        Its gradient c at the logits has ``E[c c^T] = diag(p (1 - p))``, the Fisher information.
        """
        p = outputs.detach().float().sigmoid()
        signs = image_signs(images, outputs.shape[1:], seed).to(p)
        return (signs * (p * (1 - p)).sqrt() * outputs.float()).sum()

    def reading(self, outputs: Tensor) -> Tensor:
        """Return log-probabilities of yes and no, (B, labels, 2), float64."""
        return yes_or_no(outputs.double())

    def pull(self, small: Tensor, dense: Tensor, temperature: float) -> Tensor:
        """Return ``T^2`` times the divergence at the temperature T, a mean over the batch."""
        pair = (yes_or_no(logits.float() / temperature) for logits in (dense, small))
        return temperature**2 * self.divergence(*pair) / len(small)
